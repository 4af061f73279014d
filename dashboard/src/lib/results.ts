/** The results document as far as the page shows it; read field by field, because an older version may lack some. */

export interface MeasurementRow {
  id: string;
  value: number | null;
  unit: string;
  status: string;
  reasons: string[];
  nVoxels: number | null;
  provenance: [string, string][];
  evidence: [string, string][];
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);
const text = (value: unknown): string => (typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value));
const pairs = (value: unknown): [string, string][] =>
  isObject(value)
    ? Object.entries(value)
        .map(([key, item]): [string, string] => [key, text(item)])
        .filter(([, item]) => item !== "")
    : [];

/** The measurements of a results document, in its order. A number that is not finite is no number. */
export function measurementsOf(document: unknown): MeasurementRow[] {
  if (!isObject(document) || !Array.isArray(document["measurements"])) return [];
  return document["measurements"].filter(isObject).map((item) => {
    const value = item["value"];
    return {
      id: text(item["id"]),
      value: typeof value === "number" && Number.isFinite(value) ? value : null,
      unit: text(item["unit"]),
      status: text(item["status"]),
      reasons: Array.isArray(item["reasons"]) ? item["reasons"].map(text) : [],
      nVoxels: typeof item["n_voxels"] === "number" ? item["n_voxels"] : null,
      provenance: pairs(item["provenance"]),
      evidence: pairs(item["evidence"]),
    };
  });
}

/** True where the model marked blood in a head, with a volume or without one. */
export function hasBleed(rows: MeasurementRow[]): boolean {
  const row = rows.find(({ id }) => id === "intracranial_hemorrhage_volume");
  if (row === undefined || row.status === "not_applicable") return false;
  return (row.value ?? row.nVoxels ?? 0) > 0;
}

/** What the planner saw where the segmentation of a measurement was not run. */
export const notRunWords = (row: MeasurementRow): string | null => row.evidence.find(([name]) => name === "not_run")?.[1] ?? null;

export interface FindingRow {
  id: string;
  text: string;
  urgency: string | null;
}

export function findingsOf(document: unknown): FindingRow[] {
  if (!isObject(document)) return [];
  const found = document["findings"];
  if (!Array.isArray(found)) return [];
  return found.filter(isObject).map((item) => ({
    id: text(item["id"] ?? item["rule_id"]),
    text: text(item["text"] ?? item["reason"] ?? item["statement"] ?? item["title"]),
    urgency: typeof item["urgency"] === "string" ? item["urgency"] : null,
  }));
}

export interface LeftOutTask {
  task: string;
  code: string;
  /** What the planner saw; empty in results of an older version. */
  detail: string;
}

/** The segmentations that were not run for this result. */
export function leftOutOf(document: unknown): LeftOutTask[] {
  if (!isObject(document) || !Array.isArray(document["skipped_tasks"])) return [];
  return document["skipped_tasks"].filter(isObject).map((item) => ({ task: text(item["task"]), code: text(item["reason"]), detail: text(item["detail"]) }));
}

const STATUS_WORDS: Record<string, string> = {
  ok: "measured",
  not_applicable: "not applicable",
  gated: "held back",
  incomplete_fov: "not fully in the image",
  label_absent: "structure not found",
  level_uncertain: "level uncertain",
  insufficient_roi: "sample too small",
  implausible: "implausible, check",
  error: "error",
};

export const statusWord = (status: string): string => STATUS_WORDS[status] ?? status.replaceAll("_", " ");
export const statusTone = (status: string): string =>
  status === "ok" ? "ok" : status === "implausible" ? "urg" : status === "error" ? "crit" : "plain";
