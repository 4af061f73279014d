import { useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { getBytes } from "../api/client";
import type { ArtifactView, ViewerView } from "../api/types";
import { useKeys } from "../keys";
import { labelColour } from "../lib/colours";
import { bytes, whole, words } from "../lib/format";
import { BRAIN_WINDOW, MODES, openViewer, WINDOWS, type Mode, type Place, type VolumeViewer } from "./volume";

const BLEED_TASK = "cerebral_bleed";

interface Props {
  viewer: ViewerView;
  artifacts: ArtifactView[];
  overlay: boolean;
  synthetic: boolean;
  /** Blood was marked: that is what the reader wants to see first. */
  bleed: boolean;
}

export default function VolumeTab({ viewer, artifacts, overlay, synthetic, bleed }: Props) {
  const drawable = viewer.overlays.filter((item) => item.same_grid);
  const refused = viewer.overlays.length - drawable.length;
  const [task, setTask] = useState((drawable.find((item) => bleed && item.task === BLEED_TASK) ?? drawable.find((item) => item.task === "total") ?? drawable[0])?.name ?? "");
  const chosen = drawable.find((item) => item.name === task);
  const image = artifacts.find((item) => item.name === viewer.volume);
  const labels = artifacts.find((item) => item.name === chosen?.name);
  const imageBytes = useBytes(image);
  const labelBytes = useBytes(labels);

  const canvas = useRef<HTMLCanvasElement>(null);
  const opened = useRef<VolumeViewer | null>(null);
  const [ready, setReady] = useState(false);
  const [found, setFound] = useState<ReadonlySet<number>>(new Set());
  const [failure, setFailure] = useState<string | null>(null);
  const [place, setPlace] = useState<Place | null>(null);
  const [opacity, setOpacity] = useState(0.4);
  const [preset, setPreset] = useState(bleed ? BRAIN_WINDOW : 0);
  const [mode, setMode] = useState<Mode>("multiplanar");
  const structures = chosen?.structures;

  useEffect(() => {
    const element = canvas.current;
    if (element === null || imageBytes.data === undefined || (labels !== undefined && labelBytes.data === undefined)) return;
    let gone = false;
    setReady(false);
    setFailure(null);
    const map = labelBytes.data !== undefined && structures !== undefined ? { bytes: labelBytes.data, structures } : null;
    openViewer(element, imageBytes.data, map, setPlace)
      .then((made) => {
        if (gone) return made.close();
        opened.current = made;
        setFound(made.found);
        setReady(true);
      })
      .catch((error: unknown) => {
        if (!gone) setFailure(error instanceof Error ? error.message : "the viewer failed");
      });
    return () => {
      gone = true;
      opened.current?.close();
      opened.current = null;
    };
    // A study's bytes never change under one name of content; the structures belong to the label map.
  }, [imageBytes.data, labelBytes.data]);

  useEffect(() => {
    if (ready) opened.current?.setOverlay(overlay ? opacity : 0);
  }, [ready, overlay, opacity]);
  useEffect(() => {
    const window = WINDOWS[preset];
    if (ready && window !== undefined) opened.current?.setWindow(window.centre, window.width);
  }, [ready, preset]);
  useEffect(() => {
    if (ready) opened.current?.setMode(mode);
  }, [ready, mode]);
  useKeys(Object.fromEntries(WINDOWS.map((item, index) => [item.key, () => setPreset(index)])));

  const error = imageBytes.error ?? labelBytes.error;
  const size = (image?.size ?? 0) + (labels?.size ?? 0);
  return (
    <>
      <div className="tabs">
        <label>Window{" "}
          <select value={preset} onChange={(event) => setPreset(Number(event.target.value))}>
            {WINDOWS.map((item, index) => <option key={item.name} value={index}>{item.name} ({item.key})</option>)}
          </select>
        </label>
        <label>View{" "}
          <select value={mode} onChange={(event) => setMode(event.target.value as Mode)}>
            {MODES.map((item) => <option key={item} value={item}>{item}</option>)}
          </select>
        </label>
        {drawable.length > 1 && (
          <label>Labels{" "}
            <select value={task} onChange={(event) => setTask(event.target.value)}>
              {drawable.map((item) => <option key={item.name} value={item.name}>{item.task}</option>)}
            </select>
          </label>
        )}
        <label>Opacity <input type="range" min={0} max={1} step={0.05} value={opacity} disabled={!overlay || chosen === undefined} onChange={(event) => setOpacity(Number(event.target.value))} /></label>
      </div>
      <div className="beside">
        <span data-testid="place">{place === null ? "" : `${place.mm.map(whole).join(" ")} mm`}</span>
        <span data-testid="under-cursor">{place === null ? "" : `${whole(place.value)}${overlay && place.label !== null ? `  ${place.label}` : ""}`}</span>
        <span className="grow" />
        <span>PREVIEW, REDUCED RESOLUTION. AI OVERLAY - NOT FOR DIAGNOSIS</span>
        {synthetic && <b className="warn">DEMO WEIGHTS</b>}
      </div>
      <div className="stage" id="stage" role="tabpanel" aria-labelledby="tab-volume" data-ready={ready}>
        <canvas ref={canvas} aria-label="Volume viewer" />
        {!ready && error === null && failure === null && <p className="waiting" style={{ zIndex: 1 }}>Loading {bytes(size)}</p>}
        {(error !== null || failure !== null) && <p className="waiting" role="alert" style={{ zIndex: 1 }}>The volume cannot be shown: {error?.message ?? failure}</p>}
        {overlay && ready && structures !== undefined && <Legend structures={structures} found={found} />}
      </div>
      {refused > 0 && <div className="demo" role="note">{refused} label map{refused > 1 ? "s are" : " is"} not drawn <span>not proven to lie on the grid of this image</span></div>}
    </>
  );
}

function useBytes(artifact: ArtifactView | undefined) {
  return useQuery({
    queryKey: ["bytes", artifact?.sha256 ?? ""],
    queryFn: ({ signal }) => getBytes(artifact?.url ?? "", signal),
    enabled: artifact !== undefined,
    staleTime: Infinity,
    gcTime: 60_000,
  });
}

/** What the label map holds; the other names that the model knows only when asked for. */
function Legend({ structures, found }: { structures: Record<string, string>; found: ReadonlySet<number> }) {
  const [all, setAll] = useState(false);
  const entries = Object.entries(structures);
  const there = entries.filter(([value]) => found.has(Number(value)));
  const absent = entries.filter(([value]) => !found.has(Number(value)));
  return (
    <details className="legend" data-testid="legend">
      <summary>Structures found ({there.length})</summary>
      {there.map(([value, name]) => <Swatch key={value} value={value} name={name} />)}
      {absent.length > 0 && <button type="button" aria-expanded={all} onClick={() => setAll(!all)}>{all ? "show found only" : `show all ${entries.length}`}</button>}
      {all && <div className="hint">Not found, or missed by the model:</div>}
      {all && absent.map(([value, name]) => <Swatch key={value} value={value} name={name} />)}
    </details>
  );
}

function Swatch({ value, name }: { value: string; name: string }) {
  return <div><span className="swatch" style={{ background: `rgb(${labelColour(Number(value), name).join(",")})` }} />{words(name)}</div>;
}
