// BullMQ's side of the queue benchmark: one process that hands in and works off.
//
//   node queue.cjs PATH PLAN
//
// The same measurements as scripts/bench/queue_coach.py, on the same server; prints its figures as
// one JSON line. Workers wait by BZPOPMIN on a marker, which is where coach's markers come from.
"use strict";

const { Queue, Worker } = require("bullmq");
const IORedis = require("ioredis");

const [path, planJson] = process.argv.slice(2);
const plan = JSON.parse(planJson);
const essay = "I like to read by the sea. ".repeat(20);
const AT_ONCE = 32;
const sentAt = new Map();
let pickedUpMs = [];
let done = 0;

const connect = () => new IORedis({ path, maxRetriesPerRequest: null });
const sleep = (s) => new Promise((resolve) => setTimeout(resolve, s * 1000));
const now = () => Number(process.hrtime.bigint()) / 1e6;

async function work(job) {
  const at = sentAt.get(job.data.id);
  if (at !== undefined) pickedUpMs.push(now() - at);
  if (job.data.work_s) await sleep(job.data.work_s);
  done += 1;
}

async function working(places, body) {
  const worker = new Worker("q", work, { connection: connect(), concurrency: places });
  worker.on("error", () => {});
  await worker.waitUntilReady();
  await body();
  await worker.close(true);
}

const options = { removeOnComplete: true };
const data = (id, work_s) => ({ id, essay, work_s });

async function idle(queue) {
  await working(plan.places, async () => {
    await sleep(0.5);
    for (let i = 0; i < plan.idle_jobs; i++) {
      sentAt.set(`i${i}`, now());
      await queue.add("job", data(`i${i}`, 0), options);
      await sleep(plan.idle_gap_s);
    }
    await sleep(0.5);
  });
  return { all: pickedUpMs };
}

async function overload(queue) {
  const perS = (2 * plan.places) / plan.work_s;
  await working(plan.places, async () => {
    await sleep(0.5);
    const began = now();
    let number = 0;
    while (now() - began < plan.overload_s * 1000) {
      while (number < ((now() - began) / 1000) * perS) {
        sentAt.set(`o${number}`, now());
        queue.add("job", data(`o${number}`, plan.work_s), options);
        number += 1;
      }
      await sleep(0.005);
    }
  });
  return { all: pickedUpMs };
}

async function throughput(queue) {
  let began = now();
  const jobs = Array.from({ length: plan.jobs }, (_, i) => i);
  const send = async () => {
    while (jobs.length) await queue.add("job", data(`t${jobs.pop()}`, 0), options);
  };
  await Promise.all(Array.from({ length: 100 }, send));
  const handedInMs = now() - began;
  done = 0;
  began = now();
  await working(AT_ONCE, async () => {
    while (done < plan.jobs) await sleep(0.005);
  });
  return {
    handed_in_per_s: (plan.jobs / handedInMs) * 1000,
    done_per_s: (plan.jobs / (now() - began)) * 1000,
  };
}

async function main() {
  const redis = connect();
  const figures = { of: "bullmq" };
  for (const [name, measure] of Object.entries({ idle, overload, throughput })) {
    await redis.flushall();
    pickedUpMs = [];
    sentAt.clear();
    if (!plan.measure.includes(name)) continue;
    const queue = new Queue("q", { connection: connect() });
    figures[name] = await measure(queue);
    await queue.close();
  }
  console.log(JSON.stringify(figures));
  process.exit(0);
}

main();
