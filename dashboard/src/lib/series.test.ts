import { describe, expect, it } from "vitest";
import { canBeChosen, choiceWords, chosenWords, effectTone, isTilted, rulesWords, scoreWords, seriesName, tiltOf, wishesOf } from "./series";

const part = (can_be_chosen: boolean) => ({ part: 0, code: "x", reason: "x", instances: 1, accepted: false, chosen_by: null, can_be_chosen, lines: [] });

describe("series", () => {
  it("can be chosen where any part is a volume", () => {
    expect(canBeChosen({ selection: null })).toBe(false);
    expect(canBeChosen({ selection: { rules: null, parts: [part(false)] } })).toBe(false);
    expect(canBeChosen({ selection: { rules: null, parts: [part(false), part(true)] } })).toBe(true);
  });
  it("shows scores in words", () => {
    expect([null, 0, 0.256, -31, 1e9].map(scoreWords)).toEqual(["", "0", "0.26", "-31", "last"]);
  });
  it("marks what turned the choice", () => {
    expect(["passed", "refused", "decides", "overruled", "disagrees"].map(effectTone)).toEqual(["hint", "bad", "turned", "turned", "bad"]);
  });
  it("tells a tilt that was left in from one that was taken out", () => {
    expect(tiltOf(["duplicate_slices:1"])).toBe(null);
    expect(tiltOf(["tilt:18.5"])).toBe("left in");
    expect(tiltOf(["tilt:18.5", "variable_spacing:1.00-3.00", "deskewed"])).toBe("taken out");
  });
  it("says what a person chose", () => {
    expect(choiceWords("Bone", { part: null, deskew: null })).toBe("A person chose Bone");
    expect(choiceWords("Bone", { part: 2, deskew: true })).toBe("A person chose Bone, part 2 and asked for the tilt to be taken out");
    expect(choiceWords(null, { part: null, deskew: false })).toBe("A person asked for the tilt to be left in");
  });
  it("names a person's two wishes with the person of each", () => {
    const choice = { series_uid: "1.2", part: null, chosen_by: "A", chosen_at: "t1", reason: "motion", deskew: true, deskew_by: null, deskew_at: null, deskew_reason: null };
    expect(wishesOf("Bone", choice)).toEqual([{ what: "A person chose Bone and asked for the tilt to be taken out", who: "A", at: "t1", why: "motion" }]);
    expect(wishesOf("Bone", { ...choice, deskew_by: "B", deskew_at: "t2", deskew_reason: "askew" })).toEqual([
      { what: "A person chose Bone", who: "A", at: "t1", why: "motion" },
      { what: "A person asked for the tilt to be taken out", who: "B", at: "t2", why: "askew" },
    ]);
  });
  it("knows a tilt from the headers, whether the series was measured or not", () => {
    const told = (rule: string, value: string) => isTilted({ lines: [{ rule, value, effect: "passed", score: null }] });
    expect(told("geometry", "28 slices of 4 mm over 120 mm, tilt:18.5")).toBe(true);
    expect(told("geometry", "28 slices of 4 mm over 120 mm")).toBe(false);
    expect(told("projection", "tilt:18.5")).toBe(false);
  });
  it("names a series by number and description", () => {
    expect(seriesName({ series_number: 2, series_description: "Head std" })).toBe("No. 2 Head std");
    expect(seriesName({ series_number: 2, series_description: null })).toBe("No. 2 without a description");
    expect(seriesName({ series_number: null, series_description: "Bone" })).toBe("Bone");
  });
  it("says measured only where the study has that result", () => {
    expect(["done", "failed", "running", "queued"].map((state) => chosenWords(state, false))).toEqual(["measured", "chosen by the rules", "chosen by the rules", "chosen by the rules"]);
    expect(chosenWords("failed", true)).toBe("chosen by a person");
  });
  it("names the rules", () => {
    expect(rulesWords({ rules_id: "ward-7", version: 3, sha256: "ab".repeat(32), purpose: "volume" })).toContain("ward-7, version 3 (abababababab), for volume");
  });
});
