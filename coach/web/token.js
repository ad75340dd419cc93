// Tokens as pages get them: in the address, after #token=, where no server's log can see them.

/** The token in the address, which is taken out of it; "" where there is none. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.replace(/^#/, "")).get("token") ?? "";
  if (token) history.replaceState(null, "", location.pathname);
  return token;
}

/** What a token says of whoever has it; null where it is none. Nobody has checked it yet. */
export function claimsOf(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return null;
  }
}
