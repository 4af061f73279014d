import { describe, expect, it } from "vitest";
import { canBeChosen, choiceWords, effectTone, rulesWords, scoreWords, tiltOf } from "./series";

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
  it("names the rules", () => {
    expect(rulesWords({ rules_id: "ward-7", version: 3, sha256: "ab".repeat(32), purpose: "volume" })).toContain("ward-7, version 3 (abababababab), for volume");
  });
});
