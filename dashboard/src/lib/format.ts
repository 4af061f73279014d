/** DICOM and UCUM values as people read them. Rounding is for the screen only; the API keeps the number. */

const UNITS: Record<string, string> = { "[hnsf'U]": "HU", cm2: "cm²", mm2: "mm²", "1": "", "%": "%", mL: "mL", "cm2/m2": "cm²/m²" };

export function unitOf(ucum: string): string {
  return UNITS[ucum] ?? ucum;
}

/** Three significant digits below 100, whole numbers above; never in exponent form. */
export function roundedValue(value: number): string {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 || size === 0 ? 2 : 3;
  return value.toFixed(digits).replace(/^-(0(?:\.0*)?)$/, "$1");
}

export function valueWithUnit(value: number | null, ucum: string): string {
  if (value === null) return "—";
  const unit = unitOf(ucum);
  if (unit === "" && Number.isInteger(value)) return String(value);
  return unit === "" ? roundedValue(value) : `${roundedValue(value)} ${unit}`;
}

/** Modality and description, without saying the modality twice. */
export function studyName(modalities: string[], description: string | null, none = "no description"): string {
  const text = (description ?? "").trim();
  const missing = modalities.filter((modality) => !new RegExp(`\\b${modality.replace(/\W/g, "")}\\b`, "i").test(text));
  return [...missing, text].filter((part) => part !== "").join(" ") || none;
}

/** `liver_volume` -> `Liver volume`. */
export function words(id: string): string {
  const text = id.replaceAll("_", " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** DICOM PN (PS3.5 6.2.1): `DOE^JANE^^DR` -> `DOE, JANE`; only the alphabetic group. */
export function personName(name: string | null): string {
  if (name === null || name.trim() === "") return "no name";
  const [family = "", given = "", middle = ""] = (name.split("=")[0] ?? "").split("^").map((part) => part.trim());
  const rest = [given, middle].filter((part) => part !== "").join(" ");
  if (family === "" && rest === "") return "no name";
  return rest === "" ? family : family === "" ? rest : `${family}, ${rest}`;
}

/** DICOM DA -> `2024-05-02`; other text is shown as it came. */
export function dicomDate(text: string | null): string {
  const match = /^(\d{4})\.?(\d{2})\.?(\d{2})$/.exec(text ?? "");
  return match === null ? (text ?? "") : `${match[1]}-${match[2]}-${match[3]}`;
}

/** DICOM TM -> `13:58`. */
export function dicomTime(text: string | null): string {
  const match = /^(\d{2}):?(\d{2})/.exec(text ?? "");
  return match === null ? "" : `${match[1]}:${match[2]}`;
}

/** Whole years from a DICOM birth date to `on`, or null where it is not known. */
export function ageYears(birth: string | null, on: Date): number | null {
  const match = /^(\d{4})\.?(\d{2})\.?(\d{2})$/.exec(birth ?? "");
  if (match === null) return null;
  const [year, month, day] = [Number(match[1]), Number(match[2]), Number(match[3])];
  const years = on.getFullYear() - year - (on.getMonth() + 1 < month || (on.getMonth() + 1 === month && on.getDate() < day) ? 1 : 0);
  return years >= 0 && years < 150 ? years : null;
}

/** `F, 67 y` as far as known. The age is that on the day of the study. */
export function sexAndAge(sex: string | null, birth: string | null, studyDate: string | null, now: Date): string {
  const day = /^(\d{4})-(\d{2})-(\d{2})$/.exec(dicomDate(studyDate));
  const on = day === null ? now : new Date(Number(day[1]), Number(day[2]) - 1, Number(day[3]));
  const years = ageYears(birth, on);
  return [sex ?? "", years === null ? "" : `${years} y`].filter((part) => part !== "").join(", ");
}

/** Local time with its zone, so that no clock on a page is ambiguous; the day too where it is not today's. */
export function clockTime(iso: string, now: Date): string {
  return `${localTime(new Date(iso), now)} ${zoneName(new Date(iso))}`;
}

/** The same for a column whose head names the zone of `now`; said again where a time is of another one (summer time). */
export function columnTime(iso: string, now: Date): string {
  const at = new Date(iso);
  return zoneName(at) === zoneName(now) ? localTime(at, now) : clockTime(iso, now);
}

/** Times like 10:15:30 UTC: a wait is shorter than a minute. */
export function exactTime(iso: string): string {
  const at = new Date(iso);
  return `${at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" })} ${zoneName(at)}`;
}

function localTime(at: Date, now: Date): string {
  const sameDay = at.toDateString() === now.toDateString();
  const time = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const date = `${at.getFullYear()}-${String(at.getMonth() + 1).padStart(2, "0")}-${String(at.getDate()).padStart(2, "0")}`;
  return sameDay ? time : `${date} ${time}`;
}

/** The reader's zone at that moment: UTC, CET, GMT+5:30. */
export function zoneName(at: Date): string {
  const part = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(at).find((p) => p.type === "timeZoneName");
  return part?.value ?? "";
}

export function bytes(size: number): string {
  const steps = ["B", "kB", "MB", "GB", "TB"];
  let value = size;
  let step = 0;
  while (value >= 1000 && step < steps.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${step === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${steps[step] ?? ""}`;
}

export function seconds(value: number): string {
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** `1 image`, `2 images`. */
export function counted(number: number, noun: string, plural = `${noun}s`): string {
  return `${number} ${number === 1 ? noun : plural}`;
}

/** The door by which a study first came in. */
export function doorName(door: string): string {
  return { dicom: "DICOM", upload: "upload", stow: "STOW-RS" }[door] ?? door;
}

/** A whole number; what rounds to nothing is 0, never -0. */
export function whole(value: number): string {
  return String(Math.round(value) + 0);
}
