import { useQueryClient } from "@tanstack/react-query";
import { Fragment, useEffect, useRef, useState } from "react";
import { ApiError, uploadZip } from "../api/client";
import { setToken, token } from "../api/token";
import { bytes, counted } from "../lib/format";
import { Link } from "../router";
import type { UploadResult } from "../api/types";

type Phase =
  | { kind: "idle" }
  | { kind: "sending"; name: string; part: number }
  | { kind: "done"; name: string; result: UploadResult }
  | { kind: "failed"; name: string; message: string; needsToken: boolean };

const HELP: Record<string, string> = {
  too_large: "The file is larger than this server accepts.",
  bad_archive: "This is not a ZIP that can be read.",
  empty_input: "The ZIP holds no DICOM image.",
  storage_full: "The server's disk is full.",
  truncated: "An image of the ZIP is cut off; nothing was stored.",
  draining: "The server is about to stop and takes nothing new in.",
  unauthorized: "The server asks for an upload token.",
};

/** More studies of one ZIP are found in the list. */
const MAX_LINKS = 5;
const NOT_A_ZIP = "Only .zip files are accepted. Put the DICOM files of a study into one ZIP.";

/** What the reader is told: our words first, the server's detail after them. */
export function uploadMessage(error: unknown): string {
  if (!(error instanceof ApiError)) return "The upload failed.";
  const help = HELP[error.code];
  return help === undefined ? error.message : `${help} (${error.message})`;
}

export function UploadZone() {
  const client = useQueryClient();
  const input = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  const [phase, setPhase] = useState<Phase>({ kind: "idle" });
  const last = useRef<File | null>(null);

  const send = async (file: File) => {
    last.current = file;
    if (!file.name.toLowerCase().endsWith(".zip")) {
      setPhase({ kind: "failed", name: file.name, message: NOT_A_ZIP, needsToken: false });
      return;
    }
    setPhase({ kind: "sending", name: `${file.name} (${bytes(file.size)})`, part: 0 });
    try {
      const result = await uploadZip(file, (part) => setPhase((old) => (old.kind === "sending" ? { ...old, part } : old)));
      setPhase({ kind: "done", name: file.name, result });
      void client.invalidateQueries({ queryKey: ["studies"] });
    } catch (error) {
      const needsToken = error instanceof ApiError && error.status === 401;
      setPhase({ kind: "failed", name: file.name, message: uploadMessage(error), needsToken });
    }
  };
  const sendAll = (files: FileList) => {
    const [file] = files;
    if (file === undefined || phase.kind === "sending") return;
    if (files.length > 1) setPhase({ kind: "failed", name: `${files.length} files`, message: "One ZIP at a time, please.", needsToken: false });
    else void send(file);
  };
  const latest = useRef(sendAll);
  useEffect(() => {
    latest.current = sendAll;
  });
  // On the whole page: a file that misses the zone would otherwise be opened by the browser in place of the worklist.
  useEffect(() => {
    const holdsFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") === true;
    const onOver = (event: DragEvent) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const onLeave = (event: DragEvent) => {
      if (event.relatedTarget === null) setOver(false);
    };
    const onDrop = (event: DragEvent) => {
      if (!holdsFiles(event) || event.dataTransfer === null) return;
      event.preventDefault();
      setOver(false);
      latest.current(event.dataTransfer.files);
    };
    window.addEventListener("dragover", onOver);
    window.addEventListener("dragleave", onLeave);
    window.addEventListener("drop", onDrop);
    return () => {
      window.removeEventListener("dragover", onOver);
      window.removeEventListener("dragleave", onLeave);
      window.removeEventListener("drop", onDrop);
    };
  }, []);
  const onToken = (value: string) => {
    setToken(value.trim() === "" ? null : value.trim());
    if (last.current !== null) void send(last.current);
  };

  return (
    <section className={over ? "drop over" : "drop"} aria-label="Upload">
      <button type="button" disabled={phase.kind === "sending"} onClick={() => input.current?.click()}>Choose a ZIP</button>
      <input ref={input} type="file" accept=".zip,application/zip" tabIndex={-1} aria-label="ZIP of a study" onChange={(event) => { const file = event.target.files?.[0]; event.target.value = ""; if (file !== undefined) void send(file); }} />
      {phase.kind === "idle" && <span>or drop a study here, as a ZIP of DICOM files</span>}
      {phase.kind === "sending" && (
        <>
          <progress value={phase.part} max={1} aria-label="upload" />
          <span>{phase.part < 1 ? `${Math.floor(phase.part * 100)} % of ${phase.name}` : `${phase.name}: storing`}</span>
        </>
      )}
      {phase.kind === "done" && (
        <span role="status">
          <span className="chosen">{counted(phase.result.accepted, "image")} stored</span> from {phase.name}
          {phase.result.already_there > 0 && <>, {phase.result.already_there} of them {phase.result.already_there === 1 ? "was" : "were"} already here</>}
          {phase.result.rejected > 0 && <>, {counted(phase.result.rejected, "entry was", "entries were")} no DICOM image</>}.
          {phase.result.study_uids.slice(0, MAX_LINKS).map((uid, at) => <Fragment key={uid}>{" "}<Link to={`/studies/${uid}`}>Open {phase.result.study_uids.length > 1 ? `study ${at + 1}` : "the study"}</Link></Fragment>)}
        </span>
      )}
      {phase.kind === "failed" && <span role="alert" className="bad">{phase.name}: {phase.message}</span>}
      {phase.kind === "failed" && phase.needsToken && <TokenField onToken={onToken} />}
    </section>
  );
}

function TokenField({ onToken }: { onToken: (value: string) => void }) {
  const [value, setValue] = useState(token() ?? "");
  return (
    <form className="outcome" onSubmit={(event) => { event.preventDefault(); onToken(value); }}>
      <label>Upload token <input type="password" autoComplete="off" value={value} onChange={(event) => setValue(event.target.value)} /></label>{" "}
      <button type="submit">Try again</button>
    </form>
  );
}
