import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useDeferredValue, useEffect, useRef, useState } from "react";
import { getStudies } from "../api/client";
import { useLive } from "../api/live";
import type { StudySummary } from "../api/types";
import { useKeys } from "../keys";
import { brokenOff, canComplete, cutOff, heldWords, startsWords } from "../lib/completion";
import { columnTime, exactTime, personName, sexAndAge, zoneName } from "../lib/format";
import { canRetry, STATES } from "../lib/states";
import { Link, navigate } from "../router";
import { reasonOf } from "../lib/reasons";
import { urgencyWords } from "../lib/urgency";
import { Failure, StatePill, UrgencyPill, useSentences } from "../ui";
import { UploadZone } from "./UploadZone";

const PAGE_ROWS = 100;
const COLUMNS = ["urgency", "state", "patient", "mrn", "study", "modality", "order", "images", "received", "reason"];
const studyPath = (study: StudySummary) => `/studies/${study.study_uid}`;

export function Worklist() {
  const [text, setText] = useState("");
  const [state, setState] = useState("");
  const [offset, setOffset] = useState(0);
  const [selectedUid, setSelectedUid] = useState<string | null>(null);
  const search = useRef<HTMLInputElement>(null);
  const { link } = useLive();
  const q = useDeferredValue(text);
  const query = useQuery({
    queryKey: ["studies", { q, state, offset }],
    queryFn: ({ signal }) => getStudies({ q, state, offset, limit: PAGE_ROWS }, signal),
    placeholderData: keepPreviousData,
    refetchInterval: link === "live" ? 60_000 : 10_000,
  });

  useEffect(() => {
    document.title = "Worklist - Heimdallr";
  }, []);

  const rows = query.data?.studies ?? [];
  const total = query.data?.total ?? 0;
  const selected = Math.max(0, rows.findIndex((row) => row.study_uid === selectedUid));
  const select = (index: number) => {
    const row = rows[Math.min(Math.max(index, 0), rows.length - 1)];
    if (row === undefined) return;
    setSelectedUid(row.study_uid);
    document.getElementById(`row-${row.study_uid}`)?.scrollIntoView({ block: "nearest" });
  };
  useKeys({
    j: () => select(selected + 1),
    k: () => select(selected - 1),
    Enter: () => {
      const row = rows[selected];
      if (row !== undefined) navigate(studyPath(row));
    },
    "/": () => search.current?.focus(),
  });

  return (
    <>
      <h1 className="hidden">Worklist</h1>
      <div className="toolbar" role="search">
        <label>Search <input ref={search} type="search" placeholder="name, MRN, accession" value={text} onChange={(event) => { setText(event.target.value); setOffset(0); }} onKeyDown={(event) => { if (event.key !== "Escape") return; event.preventDefault(); event.currentTarget.blur(); }} /></label>
        <label>State{" "}
          <select value={state} onChange={(event) => { setState(event.target.value); setOffset(0); }}>
            <option value="">All</option>
            {STATES.map((name) => <option key={name} value={name}>{name.replaceAll("_", " ")}</option>)}
          </select>
        </label>
        <span className="hint" data-testid="total">{total === 1 ? "1 study" : `${total} studies`}</span>
        <span className="grow" />
        <span className="keys"><span><kbd>j</kbd>/<kbd>k</kbd> move</span><span><kbd>Enter</kbd> open</span><span><kbd>/</kbd> search</span></span>
      </div>
      <UploadZone />
      {query.error !== null && <Failure error={query.error} />}
      <main id="content" className="list">
        {rows.length > 0 && (
          <table>
            <colgroup>{COLUMNS.map((name) => <col key={name} className={`c-${name}`} />)}</colgroup>
            <thead>
              <tr>
                <th scope="col" title="The more urgent of our rules and the ordered priority comes first; then first come, first read. AI may raise a study, never lower it: one without AI urgency keeps the place of its order, without an order among the routine studies">Urgency ▼</th>
                <th scope="col">State</th>
                <th scope="col">Patient</th>
                <th scope="col">MRN</th>
                <th scope="col">Study</th>
                <th scope="col">Mod.</th>
                <th scope="col">Order</th>
                <th scope="col" className="num">Images</th>
                <th scope="col" className="num">Received {zoneName(new Date())}</th>
                <th scope="col">Reason</th>
              </tr>
            </thead>
            <tbody>
              {rows.map((row, index) => (
                <Row key={row.study_uid} row={row} selected={index === selected} onOpen={() => navigate(studyPath(row))} />
              ))}
            </tbody>
          </table>
        )}
        {query.isSuccess && rows.length === 0 && <Empty filtered={text !== "" || state !== ""} />}
      </main>
      {total > PAGE_ROWS && (
        <nav className="toolbar" aria-label="Pages of the list">
          <button disabled={offset === 0} onClick={() => setOffset(Math.max(0, offset - PAGE_ROWS))}>Previous</button>
          <span className="mute">{offset + 1} to {Math.min(offset + PAGE_ROWS, total)} of {total}</span>
          <button disabled={offset + PAGE_ROWS >= total} onClick={() => setOffset(offset + PAGE_ROWS)}>Next</button>
        </nav>
      )}
    </>
  );
}

function Row({ row, selected, onOpen }: { row: StudySummary; selected: boolean; onOpen: () => void }) {
  const now = new Date();
  const sentences = useSentences();
  const ended = canRetry(row.state);
  const held = canComplete(row.state) ? heldWords(row) : null;
  const sentence = row.reason_code === null ? "" : reasonOf(row.reason_code, sentences).sentence;
  // The detail of this one is a list of codes, one for each series.
  const detail = row.reason_code === "no_usable_series" ? sentence : (row.reason ?? sentence);
  const ending = detail || "no reason was recorded";
  // Urgency and reason are of one run; where that is an older one, the last run's own reason follows.
  const raised = row.urgency_older && row.urgency !== null;
  const reason = ended ? (raised ? `${urgencyWords(row)} Last run: ${ending}` : ending) : row.urgency_older ? urgencyWords(row) : (row.urgency_reason ?? "");
  return (
    <tr id={`row-${row.study_uid}`} aria-selected={selected} data-study={row.study_uid} onClick={onOpen}>
      <td><UrgencyPill study={row} /></td>
      <td>
        <StatePill study={row} />
        {brokenOff(row) && <> <span className="pill small urg" title={startsWords(row, undefined)}>BROKEN OFF</span></>}
        {row.completion?.closes_at != null && <div className="hint" title={row.completion.reason}>closes {exactTime(row.completion.closes_at)}</div>}
        {held !== null && row.completion?.closes_at == null && <div className="hint" title={row.completion?.reason}>{held}</div>}
        {canComplete(row.state) && <div><Link to={studyPath(row)} className="act">complete now</Link></div>}
        {row.uid_conflicts > 0 && <> <span className="pill small urg" title="images came under one SOP Instance UID with different bytes; all are kept">UID CONFLICT</span></>}
        {cutOff(row) !== null && <> <span className="pill small urg" title={[row.completion?.reason, reasonOf(cutOff(row) ?? "", sentences).sentence].join(" - ")}>CUT OFF</span></>}
        {row.stale && <> <span className="pill small urg" title="new images arrived, or a newer run has not ended well">OLDER RESULT</span></>}
      </td>
      <td>
        <Link to={studyPath(row)}>{personName(row.patient_name)}</Link>{" "}
        <span className="hint">{sexAndAge(row.patient_sex, row.patient_birth_date, row.study_date, now)}</span>
        {row.synthetic && <> <span className="pill small urg" title="demo data or demo weights">DEMO</span></>}
      </td>
      <td className="mono">{row.patient_id ?? "—"}</td>
      <td>{row.study_description ?? "—"}</td>
      <td>{row.modalities.join(" ")}</td>
      <td>{row.ordered_priority === "STAT" ? <span className="pill small urg">STAT</span> : (row.ordered_priority ?? "—")}</td>
      <td className="num">{row.n_instances}</td>
      <td className="num">{columnTime(row.first_received_at, now)}</td>
      <td className={row.state === "failed" ? "bad" : "mute"} title={ended ? [reason, sentence].filter((part, at, all) => part !== "" && all.indexOf(part) === at).join(" - ") : reason}><div className="clamp">{reason}</div></td>
    </tr>
  );
}

function Empty({ filtered }: { filtered: boolean }) {
  return (
    <div className="empty">
      <p>{filtered ? "No study matches." : "No study yet."}</p>
      {!filtered && <p>Send one by DICOM, drop a ZIP above, or run <code className="mono">heimdallr send</code>.</p>}
    </div>
  );
}
