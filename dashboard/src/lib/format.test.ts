import { afterEach, describe, expect, it, vi } from "vitest";
import { ageYears, bytes, clockTime, columnTime, counted, dicomDate, dicomTime, doorName, exactTime, personName, roundedValue, seconds, sexAndAge, studyName, valueWithUnit, whole, words, zoneName } from "./format";

describe("numbers", () => {
  it("rounds for the screen and never to an exponent", () => {
    expect([0, 0.0042, 0.1234, 1.2345, 12.345, 123.45, 123456.7].map(roundedValue)).toEqual(["0.00", "0.004", "0.123", "1.23", "12.3", "123", "123457"]);
    expect(roundedValue(-0.00001)).toBe("0.000");
    expect(roundedValue(-78.46)).toBe("-78.5");
  });
  it("counts one thing as one and shows no negative nothing", () => {
    expect(["dicom", "upload", "stow", "other"].map(doorName)).toEqual(["DICOM", "upload", "STOW-RS", "other"]);
    expect([counted(1, "image"), counted(2, "image"), counted(1, "entry was", "entries were")]).toEqual(["1 image", "2 images", "1 entry was"]);
    expect([whole(-0.3), whole(0), whole(-1.6), whole(54.4)]).toEqual(["0", "0", "-2", "54"]);
  });
  it("shows UCUM units as people write them", () => {
    expect(valueWithUnit(78.46, "[hnsf'U]")).toBe("78.5 HU");
    expect(valueWithUnit(191.9, "cm2")).toBe("192 cm²");
    expect(valueWithUnit(2, "1")).toBe("2");
    expect(valueWithUnit(1.05, "1")).toBe("1.05");
  });
  it("never shows a missing value as a number", () => {
    expect(valueWithUnit(null, "mL")).toBe("—");
    expect(valueWithUnit(0, "mL")).toBe("0.00 mL");
  });
});

describe("DICOM text", () => {
  it("reads person names", () => {
    expect(personName("DOE^JANE^MARIE^DR")).toBe("DOE, JANE MARIE");
    expect(personName("Yamada^Tarou=山田^太郎")).toBe("Yamada, Tarou");
    expect(personName("ONLY")).toBe("ONLY");
    expect(personName("^^")).toBe("no name");
    expect(personName(null)).toBe("no name");
  });
  it("reads dates and times, and shows others as they came", () => {
    expect(dicomDate("20240502")).toBe("2024-05-02");
    expect(dicomDate("1999.01.02")).toBe("1999-01-02");
    expect(dicomDate("soon")).toBe("soon");
    expect(dicomDate(null)).toBe("");
    expect(dicomTime("135812.123")).toBe("13:58");
    expect(dicomTime("")).toBe("");
  });
  it("knows the age on the day of the study", () => {
    expect(ageYears("19600214", new Date(2026, 1, 13))).toBe(65);
    expect(ageYears("19600214", new Date(2026, 1, 14))).toBe(66);
    expect(ageYears("unknown", new Date())).toBeNull();
    expect(ageYears("20990101", new Date(2026, 0, 1))).toBeNull();
    expect(sexAndAge("F", "19600214", "20200301", new Date(2026, 0, 1))).toBe("F, 60 y");
    expect(sexAndAge(null, null, null, new Date())).toBe("");
  });
  it("does not say the modality twice", () => {
    expect(studyName(["CT"], "CT Abdomen")).toBe("CT Abdomen");
    expect(studyName(["CT"], "Abdomen")).toBe("CT Abdomen");
    expect(studyName(["CT", "SR"], "CTA thorax")).toBe("CT SR CTA thorax");
    expect(studyName([], null)).toBe("no description");
  });
});

describe("clocks", () => {
  afterEach(() => vi.unstubAllEnvs());
  it("bear the zone of the moment that they tell", () => {
    vi.stubEnv("TZ", "UTC");
    const now = new Date("2026-11-23T15:20:00Z");
    expect(clockTime("2026-11-23T15:12:39Z", now)).toBe("15:12 UTC");
    expect(clockTime("2026-11-22T05:12:39Z", now)).toBe("2026-11-22 05:12 UTC");
    expect(exactTime("2026-11-23T15:12:39Z")).toBe("15:12:39 UTC");
    vi.stubEnv("TZ", "Asia/Kolkata");
    expect(clockTime("2026-11-23T15:12:39Z", now)).toBe("20:42 GMT+5:30");
    expect(exactTime("2026-11-23T15:12:39Z")).toBe("20:42:39 GMT+5:30");
  });
  it("leave it to the head of their column, but for another one", () => {
    vi.stubEnv("TZ", "Europe/Berlin");
    const now = new Date("2026-10-25T12:00:00Z");
    expect([zoneName(now), columnTime("2026-10-25T11:30:00Z", now)]).toEqual(["CET", "12:30"]);
    expect(columnTime("2026-10-25T00:30:00Z", now)).toBe("02:30 CEST");
  });
});

describe("words", () => {
  it("reads identifiers", () => expect(words("l3_muscle_area")).toBe("L3 muscle area"));
  it("shows sizes and durations", () => {
    expect([999, 1000, 2_100_000, 740_000_000].map(bytes)).toEqual(["999 B", "1.0 kB", "2.1 MB", "740 MB"]);
    expect([0.214, 18.4, 61].map(seconds)).toEqual(["0.21 s", "18.4 s", "1 min 1 s"]);
  });
});
