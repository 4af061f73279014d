import { useQueryClient } from "@tanstack/react-query";
import { createContext, useContext, useEffect, useRef, useState, type ReactNode } from "react";
import { backoffMs, linkState, SseParser, type Link } from "./sse";
import { clockTime } from "../lib/format";
import { authorization } from "./token";

interface Live {
  link: Link;
  heardAt: number;
}

const LiveContext = createContext<Live>({ link: "connecting", heardAt: 0 });
export const useLive = (): Live => useContext(LiveContext);

const GATHER_MS = 150;

/** Keeps one stream open, tells its children how fresh the page is, and refetches what changed. */
export function LiveProvider({ children }: { children: ReactNode }) {
  const client = useQueryClient();
  const [live, setLive] = useState<Live>({ link: "connecting", heardAt: Date.now() });
  const state = useRef({ connected: false, ever: false, heardAt: Date.now(), lastId: null as string | null });

  useEffect(() => {
    const stop = new AbortController();
    const changed = new Set<string>();
    let timer: ReturnType<typeof setTimeout> | undefined;

    const publish = () => {
      const { connected, ever, heardAt } = state.current;
      const link = linkState(connected, ever, heardAt, Date.now());
      setLive((old) => (old.link === link && Math.abs(old.heardAt - heardAt) < 1000 ? old : { link, heardAt }));
    };
    const refetch = () => {
      timer = undefined;
      void client.invalidateQueries({ queryKey: ["studies"] });
      void client.invalidateQueries({ queryKey: ["status"] });
      const all = changed.has("*");
      for (const uid of all ? [] : changed) void client.invalidateQueries({ queryKey: ["study", uid] });
      if (all) void client.invalidateQueries({ queryKey: ["study"] });
      changed.clear();
    };
    const touch = (uid: string) => {
      changed.add(uid);
      timer ??= setTimeout(refetch, GATHER_MS);
    };

    const read = async () => {
      const headers: Record<string, string> = { ...authorization(), Accept: "text/event-stream" };
      if (state.current.lastId !== null) headers["Last-Event-ID"] = state.current.lastId;
      const response = await fetch("/api/v1/events", { headers, signal: stop.signal, cache: "no-store" });
      if (!response.ok || response.body === null) throw new Error(`stream: ${response.status}`);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new SseParser();
      Object.assign(state.current, { connected: true, ever: true });
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        state.current.heardAt = Date.now();
        for (const message of parser.push(value)) {
          if (message.id !== null) state.current.lastId = message.id;
          if (message.event === "study") touch(String((JSON.parse(message.data) as { study_uid: unknown }).study_uid));
          else touch("*");
        }
        publish();
      }
    };
    const run = async () => {
      for (let attempt = 0; !stop.signal.aborted; ) {
        const began = Date.now();
        try {
          await read();
        } catch {
          // The state below tells the reader; the loop tries again.
        }
        if (stop.signal.aborted) return;
        state.current.connected = false;
        publish();
        attempt = Date.now() - began > 5_000 ? 0 : attempt + 1;
        await new Promise((resolve) => setTimeout(resolve, attempt === 0 ? 100 : backoffMs(attempt)));
      }
    };

    void run();
    const tick = setInterval(publish, 1000);
    return () => {
      stop.abort();
      clearInterval(tick);
      clearTimeout(timer);
    };
  }, [client]);

  return <LiveContext value={live}>{children}</LiveContext>;
}

const WORDS: Record<Link, { text: string; tone: string }> = {
  live: { text: "● LIVE", tone: "ok" },
  connecting: { text: "○ CONNECTING", tone: "plain" },
  reconnecting: { text: "○ RECONNECTING", tone: "urg" },
  stale: { text: "✕ STALE", tone: "crit" },
};

/** The visible promise: how fresh is what you see. */
export function LiveBadge() {
  const { link, heardAt } = useLive();
  const { text, tone } = WORDS[link];
  const since = clockTime(new Date(heardAt).toISOString(), new Date());
  return (
    <span className={`pill ${tone}`} role="status" data-link={link} title={`last word from the server at ${since}`}>
      {text}
      {link === "stale" ? ` since ${since}` : ""}
    </span>
  );
}
