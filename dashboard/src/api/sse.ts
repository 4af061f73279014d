/** Server-Sent Events over fetch: EventSource can send neither a token nor a Last-Event-ID of ours. */

export interface SseMessage {
  id: string | null;
  event: string;
  data: string;
}

const MAX_BUFFER = 1_000_000;

/** Incremental parser (WHATWG HTML 9.2.6); comments and unknown fields are dropped. */
export class SseParser {
  private buffer = "";

  push(text: string): SseMessage[] {
    this.buffer = (this.buffer + text).replaceAll("\r\n", "\n");
    if (this.buffer.length > MAX_BUFFER) throw new Error("event too long");
    const blocks = this.buffer.split("\n\n");
    this.buffer = blocks.pop() ?? "";
    return blocks.map(parseBlock).filter((message) => message !== null);
  }
}

function parseBlock(block: string): SseMessage | null {
  const message: SseMessage = { id: null, event: "message", data: "" };
  const data: string[] = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon === 0) continue;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "id") message.id = value;
    else if (field === "event") message.event = value;
    else if (field === "data") data.push(value);
  }
  if (data.length === 0) return null;
  message.data = data.join("\n");
  return message;
}

export type Link = "connecting" | "live" | "reconnecting" | "stale";

export const STALE_MS = 30_000;

/** What the page may claim about its freshness. `heardAt` is when anything, a heartbeat too, last came in. */
export function linkState(connected: boolean, everConnected: boolean, heardAt: number, now: number): Link {
  if (now - heardAt > STALE_MS) return "stale";
  if (connected) return "live";
  return everConnected ? "reconnecting" : "connecting";
}

/** Wait before attempt n (0, 1, ...): quick at first, never more than 10 s. */
export function backoffMs(attempt: number): number {
  return Math.min(10_000, 500 * 2 ** Math.min(attempt, 8));
}
