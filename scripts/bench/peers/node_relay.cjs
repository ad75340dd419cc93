// A relay with what Node brings (http, http2) and `ws`: WebSocket in, Anthropic's events up, deltas out.
// It keeps nobody's limits, counts nothing, writes to no Redis and knows one provider.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const http2 = require("node:http2");
const { parseArgs } = require("node:util");
const { WebSocketServer } = require("ws");

const { values: options } = parseArgs({
  options: {
    port: { type: "string" },
    provider: { type: "string" },
    ca: { type: "string" },
    "output-tokens-max": { type: "string" },
  },
});
const OUTPUT_TOKENS_MAX = Number(options["output-tokens-max"]);
const SYSTEM = "You are a writing coach. Comment on the essay in at most five short remarks.";
const STREAMS_MAX = 100;

// Connections to the provider: the first with a free stream is taken, another one made if there is none.
const ca = fs.readFileSync(options.ca);
const sessions = [];

function sessionWithAFreeStream() {
  for (const session of sessions) {
    if (session.turns < Math.min(STREAMS_MAX, session.remoteSettings.maxConcurrentStreams ?? STREAMS_MAX)) {
      return session;
    }
  }
  const session = http2.connect(options.provider, { ca, settings: { initialWindowSize: 1 << 20 } });
  session.turns = 0;
  session.on("connect", () => session.setLocalWindowSize(1 << 24));
  session.on("error", (error) => console.error(String(error)));
  session.on("close", () => sessions.splice(sessions.indexOf(session), 1));
  sessions.push(session);
  return session;
}

class Conversation {
  constructor(socket) {
    this.socket = socket;
    this.drafts = new Map();
    this.streams = new Set();
    this.seq = 0;
    socket.on("message", (data) => this.take(JSON.parse(data.toString())));
    socket.on("error", () => {});
    socket.on("close", () => {
      for (const stream of this.streams) stream.close(http2.constants.NGHTTP2_CANCEL);
    });
  }

  take(message) {
    switch (message.type) {
      case "hello":
        this.say({ type: "welcome", session: "s" });
        break;
      case "draft":
        this.drafts.set(message.draft, message.text);
        break;
      case "feedback":
        this.answer(message.request, this.drafts.get(message.draft));
        break;
    }
  }

  say(message) {
    message.seq = ++this.seq;
    if (this.socket.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  answer(request, draft) {
    const session = sessionWithAFreeStream();
    session.turns += 1;
    const stream = session.request({
      ":method": "POST",
      ":path": "/v1/messages",
      "content-type": "application/json",
      "x-api-key": "bench",
      "anthropic-version": "2023-06-01",
    });
    this.streams.add(stream);
    let failed = "";
    let rest = "";
    stream.setEncoding("utf8");
    stream.on("response", (headers) => {
      if (headers[":status"] === 200) this.say({ type: "started", request });
      else failed = `status_${headers[":status"]}`;
    });
    stream.on("data", (text) => {
      const events = (rest + text).split("\n\n");
      rest = events.pop();
      for (const raw of events) {
        const at = raw.indexOf("data: ");
        if (at < 0) continue;
        const event = JSON.parse(raw.slice(at + 6));
        if (event.type === "content_block_delta") this.say({ type: "delta", request, text: event.delta.text });
      }
    });
    stream.on("error", (error) => {
      failed = error.code ?? "error";
    });
    stream.on("close", () => {
      session.turns -= 1;
      this.streams.delete(stream);
      this.say(failed ? { type: "error", request, code: failed } : { type: "done", request });
    });
    stream.end(
      JSON.stringify({
        model: "sim-1",
        max_tokens: OUTPUT_TOKENS_MAX,
        stream: true,
        system: SYSTEM,
        messages: [{ role: "user", content: `<essay>\n${draft}\n</essay>` }],
      }),
    );
  }
}

const server = http.createServer((request, response) => {
  request.resume();
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ token: "none" }));
});
const sockets = new WebSocketServer({
  server,
  path: "/ws",
  perMessageDeflate: false,
  handleProtocols: () => "coach.v1",
});
sockets.on("connection", (socket) => new Conversation(socket));
server.listen({ port: Number(options.port), host: "127.0.0.1", backlog: 4096 });
process.on("SIGTERM", () => process.exit(0));
