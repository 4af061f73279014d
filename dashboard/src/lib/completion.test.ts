import { describe, expect, it } from "vitest";
import { canComplete, closedWords, cutOff, exactTime, keptWords, replacedWords } from "./completion";
import { STATES, stateSentence } from "./states";

const now = new Date("2026-05-02T12:00:00Z");
const at = "2026-05-02T10:15:30Z";
const plan = { code: "idle_after_release", reason: "15 s without an image after the last sender had ended properly", closes_at: at };
const study = (state: string, completion: typeof plan | null = null) => ({ state, step: null, completion });

describe("completion", () => {
  it("says after how many seconds analysis starts while images come", () => {
    expect(stateSentence(study("receiving"), false, { settle_after_release_seconds: 15 })).toContain("Analysis starts 15 s after the last image, once the sender has ended");
    expect(stateSentence(study("receiving"))).toContain("when the study counts as complete");
  });
  it("says when, and why then, once nothing comes", () => {
    expect(stateSentence(study("settling", plan), false, { settle_after_release_seconds: 15 })).toContain(`Analysis starts at ${exactTime(at)} if nothing more comes: 15 s without an image after`);
    expect(stateSentence(study("settling"), false, { settle_after_release_seconds: 15 })).toContain("Analysis starts 15 s");
  });
  it("can be said of a study that is being received only", () => expect(STATES.filter(canComplete)).toEqual(["receiving", "settling"]));
  it("tells why a study was closed, and where images may be missing", () => {
    const closed = { state: "done", n_instances: 34, closed_at: at, completion: { ...plan, closes_at: null } };
    expect(closedWords({ ...closed, completion: null }, now)).toBeNull();
    expect(closedWords(closed as never, now)).toMatch(/^Closed at .* with 34 images: 15 s without an image/);
    expect(cutOff(closed as never)).toBe(false);
    expect(cutOff({ completion: { ...plan, code: "hard_maximum" } })).toBe(true);
    expect(cutOff({ completion: null })).toBe(false);
  });
  it("tells of late images that changed nothing", () => {
    const result = { kept_epoch: 2, n_images: 24, version: 1, stale: false };
    expect(keptWords({ n_instances: 34 }, result)).toBe("10 images came after the analysis and changed nothing that was measured: the result stands.");
    expect(keptWords({ n_instances: 34 }, { ...result, stale: true })).toBeNull();
    expect(keptWords({ n_instances: 24 }, { ...result, kept_epoch: null })).toBeNull();
  });
  it("tells which result this one replaces", () => {
    const older = [{ version: 1, epoch: 1, created_at: at, urgency: "P3", n_images: 24 }];
    expect(replacedWords({ version: 2 }, older, now)).toMatch(/^Version 2 of the result\. It replaces version 1 of .*, made from 24 images\.$/);
    expect(replacedWords({ version: 1 }, [], now)).toBeNull();
  });
});
