import { describe, expect, it } from "vitest";
import { ApiError, errorOf, worklistPath } from "../api/client";
import type { ArtifactView } from "../api/types";
import { routeOf } from "../router";
import { uploadMessage } from "../worklist/UploadZone";
import { labelColour, labelTable } from "./colours";
import { hasOverlay, keyPictures, shownOf } from "./images";
import { reasonOf, saysTheSame } from "./reasons";
import { findingsOf, hasBleed, leftOutOf, measurementsOf, statusWord } from "./results";
import { attemptWords, behindExhaustion, canChoose, canRetry, noneWords, olderResultWords, retriedWords, retryHelps, STATES, stateSentence, stateWords } from "./states";
import { NO_AI_URGENCY, studyUrgencyLook, urgencyLook, urgencyWords } from "./urgency";

const study = (state: string, reason: string | null = null) => ({ state, step: state === "running" ? "segment" : null, reason, reason_code: null, completion: null });

describe("urgency", () => {
  it("is told by icon and word, not by colour alone", () => {
    for (const urgency of ["P0", "P1", "P2", "P3"]) {
      const { icon, word } = urgencyLook(urgency, "done");
      expect(icon).not.toBe("");
      expect(word).toMatch(/^[A-Z]+$/);
    }
    expect(urgencyLook("P0", "done")).toMatchObject({ icon: "!!", word: "CRITICAL" });
  });
  it("is never routine where nothing is known", () => {
    expect(urgencyLook(null, "running").word).toBe("pending");
    expect(urgencyLook(null, "failed")).toMatchObject({ word: "no AI urgency", tip: NO_AI_URGENCY });
    expect(urgencyLook("P9", "done").word).toBe("no AI urgency");
    expect(NO_AI_URGENCY).toContain("not ROUTINE");
  });
  it("knows a bleed by its volume or, where that is held back, by its voxels", () => {
    const row = (value: number | null, status: string, nVoxels: number | null) => ({ id: "intracranial_hemorrhage_volume", value, unit: "mL", status, reasons: [], nVoxels, provenance: [], evidence: [] });
    expect(hasBleed([row(30, "ok", 900)])).toBe(true);
    expect(hasBleed([row(null, "incomplete_fov", 900)])).toBe(true);
    expect(hasBleed([row(0, "ok", 0)])).toBe(false);
    expect(hasBleed([row(null, "not_applicable", 12)])).toBe(false);
    expect(hasBleed([])).toBe(false);
  });
  it("says a reason once", () => {
    expect(saysTheSame("A planning image (localizer, scout), not a volume.", "planning image (localizer, scout)")).toBe(true);
    expect(saysTheSame("Too few slices for a volume.", "2 slices, needs 10")).toBe(false);
  });
});

describe("states", () => {
  it("names the running step", () => expect(stateWords(study("running"))).toBe("running: segment"));
  it("says of a failed study that nothing was measured", () => expect(stateSentence(study("failed"))).toContain("No measurement was made"));
  it("promises nothing of a study that has ended", () => {
    for (const state of ["failed", "not_applicable", "cancelled", "superseded", "done"]) expect(noneWords("key images", state)).toMatch(/^No key images: /);
    for (const state of ["receiving", "settling", "queued", "running"]) expect(noneWords("file", state)).toBe("No file yet.");
  });
  it("offers another series where the study has ended", () => expect(STATES.filter(canChoose)).toEqual(["done", "failed", "not_applicable", "cancelled"]));
  it("offers another run only where nothing happens by itself", () => expect(STATES.filter(canRetry)).toEqual(["failed", "not_applicable", "cancelled"]));
  it("offers no run that cannot help", () => {
    expect(retryHelps({ state: "failed", reason_code: "engine_unavailable" })).toBe(true);
    expect(retryHelps({ state: "not_applicable", reason_code: "no_usable_series" })).toBe(false);
    expect(retryHelps({ state: "done", reason_code: null })).toBe(false);
  });
  it("does not let 'not applicable' pass for a negative finding", () => expect(stateSentence(study("not_applicable", "MG"))).toContain("not a negative finding"));
  it("says that a retry changed nothing, and only then", () => {
    const retry = { id: 1, at: "2026-05-02T10:15:00Z", kind: "study.retry", actor: "api", old: "not_applicable", new: "queued", reason: "why" };
    const ended = { state: "not_applicable", reason: "why" };
    expect(retriedWords(ended, [retry], new Date())).toMatch(/^Retried at .*, same result\.$/);
    expect(retriedWords(ended, [], new Date())).toBeNull();
    expect(retriedWords({ ...ended, reason: "another" }, [retry], new Date())).toBeNull();
    expect(retriedWords({ ...ended, state: "queued" }, [retry], new Date())).toBeNull();
  });
  it("counts attempts, and promises none to a study that has failed", () => {
    const words = (attempt: number, state: string) => attemptWords({ attempt, max_attempts: 3 }, state);
    expect([words(1, "failed"), words(1, "running")]).toEqual([null, null]);
    expect(words(3, "failed")).toBe("All 3 attempts failed.");
    expect(words(2, "failed")).not.toContain("of 3");
    expect(words(2, "queued")).toBe("Attempt 2 of at most 3.");
    expect(words(2, "done")).toBe("It took 2 attempts.");
  });
  it("finds the reason behind attempts that are used up", () => {
    const used = { reason_code: "attempts_exhausted", reason: "engine_unavailable: gone (attempt 3 of 3)" };
    expect(behindExhaustion(used, { error_code: "engine_unavailable" })).toEqual({ code: "engine_unavailable", detail: "gone (attempt 3 of 3)" });
    expect(behindExhaustion(used, null)).toBeNull();
    expect(behindExhaustion({ reason_code: "truncated", reason: "cut" }, { error_code: "truncated" })).toBeNull();
  });
  it("is silent where the results speak", () => expect(stateSentence(study("done"))).toBeNull());
});

describe("an urgency that is older than the last run", () => {
  const older = (urgency: string | null, state = "not_applicable") => ({ urgency, state, urgency_older: true, urgency_reason: "because" });
  it("stays on top and says that it is older, in the pill and in the words", () => {
    expect(studyUrgencyLook(older("P0"))).toMatchObject({ icon: "!!", word: "CRITICAL, older result", tone: "crit" });
    expect(urgencyWords(older("P0"))).toBe("Of an older result, not of the study's last run: because");
  });
  it("is no ROUTINE where the newer run gave nothing", () => {
    expect(studyUrgencyLook(older(null))).toMatchObject({ word: "no AI urgency", tip: "because" });
    expect(urgencyWords(older(null))).toBe("because");
    expect(studyUrgencyLook(older(null, "running")).word).toBe("pending");
  });
  it("is not claimed of the present one", () => {
    const now = { ...older("P3", "done"), urgency_older: false };
    expect([studyUrgencyLook(now).word, urgencyWords(now)]).toEqual(["ROUTINE", "because"]);
  });
});

describe("a result that is older than its study", () => {
  const older = (state: string, n_instances: number) => olderResultWords({ state, n_instances }, { stale: true, n_images: 100 });
  it("says what happened and how many images the numbers are from", () => {
    expect(older("queued", 104)).toBe("Older result: new images arrived. These numbers are from 100 of 104 images.");
    expect(older("failed", 104)).toBe("Older result: new images arrived and the newer run failed. These numbers are from 100 of 104 images.");
    expect(older("running", 100)).toContain("a newer run has begun");
    expect(older("not_applicable", 100)).toBe("Older result: the newer run did not apply. These numbers are from an earlier run on the same images.");
    for (const state of ["receiving", "settling", "not_applicable", "cancelled", "superseded"]) expect(older(state, 104)).toMatch(/^Older result: /);
  });
  it("is not claimed where the result is current or there is none", () => {
    expect(olderResultWords({ state: "done", n_instances: 100 }, { stale: false, n_images: 100 })).toBeNull();
    expect(olderResultWords({ state: "queued", n_instances: 100 }, null)).toBeNull();
  });
  it("does not let the page say that no measurement was made beside numbers", () => expect(stateSentence(study("failed"), true)).toContain("of the study as it is now"));
});

describe("reasons", () => {
  const sentences = { tilt: "The gantry was tilted.", localizer: "A planning image." };
  it("are told in a sentence, also where a number follows the code", () => {
    expect(reasonOf("localizer", sentences)).toEqual({ sentence: "A planning image.", known: true });
    expect(reasonOf("tilt:18.5", sentences).sentence).toBe("The gantry was tilted.");
  });
  it("of another version are shown as they are", () => {
    expect(reasonOf("new_code", sentences)).toEqual({ sentence: "New code.", known: false });
    expect(reasonOf("constructor", {}).sentence).toBe("Constructor.");
  });
});

describe("results document", () => {
  it("reads measurements and takes nothing for a number that is none", () => {
    const rows = measurementsOf({
      measurements: [
        { id: "liver_volume", value: 1209.4, unit: "mL", status: "ok", reasons: [], n_voxels: 10, provenance: { task: "total", synthetic: true, model_id: "" } },
        { id: "spleen_volume", value: null, unit: "mL", status: "label_absent", reasons: ["label_absent"] },
        { id: "odd", value: "12", unit: "mL", status: "ok" },
        "nonsense",
      ],
    });
    expect(rows.map((row) => row.value)).toEqual([1209.4, null, null]);
    expect(rows[0]?.provenance).toEqual([["task", "total"], ["synthetic", "true"]]);
    expect(rows[1]?.reasons).toEqual(["label_absent"]);
  });
  it("survives any document", () => {
    for (const document of [null, undefined, 3, "x", [], {}, { measurements: 3 }, { measurements: [null, [], 3] }]) expect(measurementsOf(document)).toEqual([]);
  });
  it("reads the tasks that were left out", () => {
    expect(leftOutOf({ skipped_tasks: [{ task: "cerebral_bleed", reason: "anatomy_absent" }, 3] })).toEqual([{ task: "cerebral_bleed", code: "anatomy_absent", detail: "" }]);
    for (const document of [null, {}, { skipped_tasks: "x" }]) expect(leftOutOf(document)).toEqual([]);
  });
  it("reads findings", () => {
    expect(findingsOf({ findings: [{ rule_id: "ich-any", reason: "bleeding", urgency: "P0" }] })).toEqual([{ id: "ich-any", text: "bleeding", urgency: "P0" }]);
    expect(findingsOf({})).toEqual([]);
  });
  it("says a status in words", () => expect(statusWord("label_absent")).toBe("structure not found"));
});

const artifact = (name: string, kind: string, meta = {}): ArtifactView => ({ name, kind, meta, media_type: "image/png", size: 1, sha256: name, synthetic: true, url: name });

describe("key pictures", () => {
  const pictures = keyPictures([
    artifact("liver_key_image.png", "key_image", { subject: "liver" }),
    artifact("overview_key_image.png", "key_image", { subject: "overview" }),
    artifact("liver_overlay.png", "overlay", { subject: "liver" }),
    artifact("results.json", "results"),
    artifact("spleen_overlay.png", "overlay"),
  ]);
  it("are pairs, the overview first", () => expect(pictures.map((item) => item.title)).toEqual(["Overview", "Liver", "Spleen"]));
  it("show a hemorrhage before everything else", () =>
    expect(
      keyPictures([
        artifact("abdomen_overlay.png", "overlay"),
        artifact("overview_overlay.png", "overlay"),
        artifact("hemorrhage_overlay.png", "overlay"),
      ]).map((item) => item.key),
    ).toEqual(["hemorrhage", "overview", "abdomen"]));
  it("have an overlay to switch where one picture is there in both forms", () => {
    expect(hasOverlay(pictures)).toBe(true);
    expect(hasOverlay(pictures.slice(2))).toBe(false);
    expect(hasOverlay([])).toBe(false);
  });
  it("switch between with and without overlay", () => {
    const liver = pictures[1]!;
    expect(shownOf(liver, true)?.name).toBe("liver_overlay.png");
    expect(shownOf(liver, false)?.name).toBe("liver_key_image.png");
    expect(shownOf(pictures[2]!, false)?.name).toBe("spleen_overlay.png");
  });
});

describe("label colours", () => {
  it("leave the background transparent and give each structure a colour", () => {
    const table = labelTable({ "5": "liver", "1": "spleen", "0": "background", x: "odd" });
    expect(table.I).toEqual([0, 1, 5]);
    expect(table.A).toEqual([0, 255, 255]);
    expect(table.labels).toEqual(["background", "spleen", "liver"]);
  });
  it("tell neighbours apart", () => {
    for (let value = 1; value < 117; value += 1) {
      const [a, b] = [labelColour(value, ""), labelColour(value + 1, "")];
      expect(Math.abs(a[0] - b[0]) + Math.abs(a[1] - b[1]) + Math.abs(a[2] - b[2])).toBeGreaterThan(60);
    }
  });
});

describe("addresses", () => {
  it("name a study by its UID and nothing else", () => {
    expect(routeOf("/")).toEqual({ page: "worklist" });
    expect(routeOf("/studies/1.2.840.1")).toEqual({ page: "study", uid: "1.2.840.1" });
    for (const path of ["/studies/", "/studies/x", "/studies/1..2", "/studies/%2e%2e", `/studies/${"1".repeat(65)}`, "/other"]) expect(routeOf(path).page).toBe("unknown");
  });
  it("carry filters only where there are some", () => {
    expect(worklistPath({ q: " ", state: "", offset: 0, limit: 100 })).toBe("/api/v1/studies?limit=100&offset=0");
    expect(worklistPath({ q: "a&b", state: "done", offset: 100, limit: 100 })).toBe("/api/v1/studies?limit=100&offset=100&state=done&q=a%26b");
  });
});

describe("errors", () => {
  it("keep the server's code and detail", () => {
    expect(errorOf(413, { error: { code: "too_large", detail: "larger than 4096 MiB" } })).toMatchObject({ status: 413, code: "too_large", message: "larger than 4096 MiB" });
    expect(errorOf(502, "<html>")).toMatchObject({ status: 502, code: "http_error" });
  });
  it("are explained after a failed upload", () => {
    expect(uploadMessage(new ApiError(400, "empty_input", "no DICOM"))).toBe("The ZIP holds no DICOM image. (no DICOM)");
    expect(uploadMessage(new ApiError(0, "unreachable", "the connection broke"))).toBe("the connection broke");
    expect(uploadMessage("?")).toBe("The upload failed.");
  });
});
