import { describe, expect, it } from "vitest";
import { backoffMs, linkState, SseParser, STALE_MS } from "./sse";

describe("event stream parser", () => {
  it("reads messages in whatever pieces they come", () => {
    const text = "retry: 1500\n\nid: 4\nevent: study\ndata: {\"a\":1}\n\n: alive\n\nid: 5\ndata: x\ndata: y\n\n";
    const whole = new SseParser().push(text);
    const parser = new SseParser();
    expect([...text].flatMap((letter) => parser.push(letter))).toEqual(whole);
    expect(whole).toEqual([
      { id: "4", event: "study", data: '{"a":1}' },
      { id: "5", event: "message", data: "x\ny" },
    ]);
  });
  it("accepts CRLF", () => expect(new SseParser().push("id: 1\r\ndata: x\r\n\r\n")).toEqual([{ id: "1", event: "message", data: "x" }]));
  it("keeps an unfinished message for later", () => {
    const parser = new SseParser();
    expect(parser.push("data: x\n")).toEqual([]);
    expect(parser.push("\n")).toHaveLength(1);
  });
  it("refuses to gather without end", () => expect(() => new SseParser().push("x".repeat(1_000_001))).toThrow("too long"));
});

describe("what the page may claim about its freshness", () => {
  it("is live only while connected and heard of", () => {
    expect(linkState(true, true, 1000, 2000)).toBe("live");
    expect(linkState(true, true, 1000, 1001 + STALE_MS)).toBe("stale");
    expect(linkState(false, true, 1000, 2000)).toBe("reconnecting");
    expect(linkState(false, false, 1000, 2000)).toBe("connecting");
    expect(linkState(false, true, 1000, 1001 + STALE_MS)).toBe("stale");
  });
  it("waits longer each time, but never long", () => {
    const waits = [0, 1, 2, 3, 4, 5, 6, 50].map(backoffMs);
    expect(waits).toEqual([500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]);
  });
});
