/** The one place that knows NiiVue. */

import { MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { labelTable } from "../lib/colours";

export const WINDOWS = [
  { name: "Soft tissue", key: "3", centre: 40, width: 400 },
  { name: "Lung", key: "4", centre: -600, width: 1500 },
  { name: "Bone", key: "5", centre: 400, width: 1800 },
  { name: "Brain", key: "6", centre: 40, width: 80 },
  { name: "Liver", key: "7", centre: 80, width: 150 },
] as const;
export const BRAIN_WINDOW = WINDOWS.findIndex((item) => item.name === "Brain");

export const MODES = ["multiplanar", "axial", "coronal", "sagittal"] as const;
export type Mode = (typeof MODES)[number];

const SLICES: Record<Mode, SLICE_TYPE> = {
  multiplanar: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
};

/** What lies under the crosshair: patient millimetres (RAS), image value, structure. */
export interface Place {
  mm: [number, number, number];
  value: number;
  label: string | null;
}

export interface VolumeViewer {
  /** Values of the structures that the drawn label map holds. */
  found: ReadonlySet<number>;
  setOverlay: (opacity: number) => void;
  setWindow: (centre: number, width: number) => void;
  setMode: (mode: Mode) => void;
  close: () => void;
}

interface Location {
  mm: ArrayLike<number>;
  values: { value: number }[];
}

/** The image, and the labels over it, drawn into `canvas`. The server has said that both lie on one grid. */
export async function openViewer(
  canvas: HTMLCanvasElement,
  image: ArrayBuffer,
  labels: { bytes: ArrayBuffer; structures: Record<string, string> } | null,
  onPlace: (place: Place) => void,
): Promise<VolumeViewer> {
  const viewer = new Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 0.82, 0.4, 0.8],
    crosshairWidth: 0.6,
    isRadiologicalConvention: true,
    isNearestInterpolation: false,
    dragAndDropEnabled: false,
    isResizeCanvas: true,
    multiplanarLayout: MULTIPLANAR_TYPE.GRID,
    // Rendering in 3-D costs more memory and time than the reader gains from it here.
    multiplanarShowRender: SHOW_RENDER.NEVER,
    loadingText: "",
    logLevel: "error",
  });
  await viewer.attachToCanvas(canvas);
  const soft = WINDOWS[0];
  viewer.addVolume(
    // NiiVue inflates in place of its own copy; ours stays whole for the next opening.
    await NVImage.loadFromUrl({ url: image.slice(0), name: "image.nii.gz", colormap: "gray", cal_min: soft.centre - soft.width / 2, cal_max: soft.centre + soft.width / 2 }),
  );
  const names = new Map<number, string>();
  const found = new Set<number>();
  if (labels !== null) {
    const table = labelTable(labels.structures);
    table.I.forEach((value, index) => names.set(value, table.labels[index] ?? ""));
    const map = await NVImage.loadFromUrl({ url: labels.bytes.slice(0), name: "labels.nii.gz", opacity: 0.4 });
    let last = 0; // runs of one value are long
    for (const value of map.img ?? []) if (value !== last) found.add((last = value));
    found.delete(0);
    map.setColormapLabel(table);
    viewer.addVolume(map);
    viewer.updateGLVolume();
  }
  viewer.onLocationChange = (location: unknown) => {
    const { mm, values } = location as Location;
    const label = Math.round(values[1]?.value ?? 0);
    onPlace({
      mm: [mm[0] ?? 0, mm[1] ?? 0, mm[2] ?? 0],
      value: values[0]?.value ?? 0,
      label: label > 0 ? (names.get(label) ?? `label ${label}`) : null,
    });
  };
  viewer.setSliceType(SLICE_TYPE.MULTIPLANAR);
  viewer.createOnLocationChange();

  return {
    found,
    setOverlay: (opacity) => {
      if (labels !== null) viewer.setOpacity(1, opacity);
    },
    setWindow: (centre, width) => {
      const volume = viewer.volumes[0];
      if (volume === undefined) return;
      volume.cal_min = centre - width / 2;
      volume.cal_max = centre + width / 2;
      viewer.updateGLVolume();
    },
    setMode: (mode) => viewer.setSliceType(SLICES[mode]),
    close: () => {
      viewer.onLocationChange = () => undefined;
      viewer.cleanup();
    },
  };
}
