/** A colour per label value: neighbours in value are far apart in hue (golden angle); the reported organs are fixed. */

const FIXED: Record<string, [number, number, number]> = {
  liver: [214, 140, 69],
  spleen: [86, 130, 222],
  kidney_right: [125, 190, 82],
  kidney_left: [206, 92, 190],
  pancreas: [236, 205, 92],
  aorta: [226, 88, 88],
};

export function hslToRgb(hue: number, saturation: number, lightness: number): [number, number, number] {
  const a = saturation * Math.min(lightness, 1 - lightness);
  const channel = (n: number): number => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - a * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export function labelColour(value: number, name: string): [number, number, number] {
  return FIXED[name] ?? hslToRgb((value * 137.508) % 360, 0.65, 0.55);
}

export interface LabelTable {
  R: number[];
  G: number[];
  B: number[];
  A: number[];
  I: number[];
  labels: string[];
}

/** The lookup table of a label map; background is there, and transparent. */
export function labelTable(structures: Record<string, string>): LabelTable {
  const table: LabelTable = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
  const values = Object.keys(structures).map(Number).filter((value) => Number.isInteger(value) && value > 0).sort((a, b) => a - b);
  for (const value of values) {
    const name = structures[String(value)] ?? "";
    const [r, g, b] = labelColour(value, name);
    table.R.push(r);
    table.G.push(g);
    table.B.push(b);
    table.A.push(255);
    table.I.push(value);
    table.labels.push(name.replaceAll("_", " "));
  }
  return table;
}
