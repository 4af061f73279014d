import { describe, expect, it } from "vitest";
import { brokenOff, canComplete, closedWords, cutOff, heldWords, keptWords, replacedWords } from "./completion";
import { exactTime } from "./format";
import { STATES, stateSentence } from "./states";

const now = new Date("2026-05-02T12:00:00Z");
const at = "2026-05-02T10:15:30Z";
const plan = { code: "idle_after_release", reason: "15 s without an image after the last sender had ended properly", closes_at: at as string | null, transfer: null as string | null, incomplete: null as string | null };
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
  it("says what holds a study open", () => {
    const open = { ...plan, code: "upload_open", reason: "its upload has not been ended", closes_at: null };
    expect(stateSentence(study("receiving", open), false, { settle_after_release_seconds: 15 })).toContain("later where it was cut off. Now: its upload has not been ended.");
    expect(heldWords({ completion: open })).toBe("upload open");
    expect(heldWords({ completion: { ...open, code: "sending" } })).toBe("sender connected");
    expect(heldWords({ completion: plan })).toBeNull();
  });
  it("says in the present what becomes of an open study whose last transfer was broken off", () => {
    const broken = { ...plan, code: "idle_after_abort", reason: "5 minutes without an image after the last association was broken off" };
    const words = `Its last transfer was broken off: images may be missing. If nothing more comes until ${exactTime(at)}, it is analysed with what is here: 5 minutes without`;
    for (const state of ["receiving", "settling"]) {
      expect(stateSentence(study(state, broken))).toContain(words);
      expect(brokenOff(study(state, broken))).toBe(true);
      expect(brokenOff(study(state, plan))).toBe(false);
    }
    expect(brokenOff(study("done", { ...broken, closes_at: null }))).toBe(false);
    expect(brokenOff(study("settling"))).toBe(false);
  });
  it("promises no wait for more where the longest time is up", () => {
    const longest = { ...plan, code: "hard_maximum", reason: "2 hours after the first image" };
    expect(stateSentence(study("receiving", longest))).toContain(`It is closed at ${exactTime(at)}, whatever comes: 2 hours`);
  });
  it("is planned from the end of the sender on", () => expect(stateSentence(study("receiving", plan))).toContain(`Analysis starts at ${exactTime(at)}`));
  it("can be said of a study that is being received only", () => expect(STATES.filter(canComplete)).toEqual(["receiving", "settling"]));
  it("tells why a study was closed, and where images may be missing", () => {
    const closed = { state: "done", n_instances: 34, closed_at: at, completion: { ...plan, closes_at: null } };
    expect(closedWords({ ...closed, completion: null }, now)).toBeNull();
    expect(closedWords(closed as never, now)).toMatch(/^Closed at .* with 34 images: 15 s without an image/);
    expect(cutOff(closed as never)).toBeNull();
    expect(cutOff({ completion: { ...plan, code: "hard_maximum", incomplete: "hard_maximum" } })).toBe("hard_maximum");
    // What a person said does not hide that the transfer was broken off.
    expect(cutOff({ completion: { ...plan, code: "operator", transfer: "aborted", incomplete: "transfer_incomplete" } })).toBe("transfer_incomplete");
    expect(cutOff({ completion: null })).toBeNull();
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
