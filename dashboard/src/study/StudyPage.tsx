import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useState } from "react";
import { ApiError, getResults, getStatus, getStudy, retryStudy } from "../api/client";
import { useLive } from "../api/live";
import type { StudyDetail, StudySummary } from "../api/types";
import { useKeys } from "../keys";
import { canComplete } from "../lib/completion";
import { counted, dicomDate, dicomTime, doorName, personName, sexAndAge, studyName } from "../lib/format";
import { hasOverlay, keyPictures } from "../lib/images";
import { findingsOf, hasBleed, leftOutOf, measurementsOf } from "../lib/results";
import { urgencyWords } from "../lib/urgency";
import { behindExhaustion, canRetry, noneWords, olderResultWords, retriedWords, retryHelps, stateSentence } from "../lib/states";
import { Link, navigate } from "../router";
import { DEMO_INSTALLATION, Failure, StatePill, UrgencyPill, Why } from "../ui";
import { Completion, CompleteNow } from "./Completion";
import { Files, History, Stages } from "./Facts";
import { Gallery } from "./Gallery";
import { LeftOut, Measurements } from "./Measurements";
import { SeriesTable } from "./Series";

/** The viewer is the biggest part of the app; only who opens it loads it. */
const VolumeTab = lazy(() => import("./VolumeTab"));

export function StudyPage({ uid }: { uid: string }) {
  const { link } = useLive();
  const detail = useQuery({
    queryKey: ["study", uid],
    queryFn: ({ signal }) => getStudy(uid, signal),
    refetchInterval: link === "live" ? 60_000 : 10_000,
  });
  const version = detail.data?.result?.created_at ?? null;
  const results = useQuery({
    queryKey: ["study", uid, "results", version],
    queryFn: ({ signal }) => getResults(uid, signal),
    enabled: version !== null,
    staleTime: Infinity,
  });
  const status = useQuery({ queryKey: ["status"], queryFn: ({ signal }) => getStatus(signal) });
  useKeys({ Escape: () => navigate("/"), u: () => navigate("/") });
  useEffect(() => {
    document.title = "Study - Heimdallr"; // no name of a patient in a title: it ends in histories and screenshots
  }, []);

  if (detail.error !== null && detail.data === undefined) {
    const missing = detail.error instanceof ApiError && detail.error.status === 404;
    return (
      <main id="content" className="empty">
        <h1>{missing ? "There is no such study" : "The study cannot be shown"}</h1>
        {missing ? <p>Its address may be wrong, or it was never received here.</p> : <p>{detail.error.message}</p>}
        <p><Link to="/">Go to the worklist</Link></p>
      </main>
    );
  }
  if (detail.data === undefined) return <main id="content" className="empty"><p>Loading the study</p></main>;
  const { study } = detail.data;
  const older = olderResultWords(study, detail.data.result);
  const sentence = stateSentence(study, older !== null, status.data);
  const again = retriedWords(study, detail.data.history, new Date());
  const measurements = measurementsOf(results.data);
  const findings = findingsOf(results.data);
  return (
    <>
      <Identity study={study} />
      {study.synthetic ? (
        <div className="demo" role="note" data-testid="demo">DEMO WEIGHTS <span>Made with synthetic demo models or images. Not about any patient; never leaves this system.</span></div>
      ) : status.data?.synthetic === true && (
        // The images may be a patient's: nothing is said of them.
        <div className="demo" role="note" data-testid="demo">DEMO WEIGHTS <span>{DEMO_INSTALLATION}</span></div>
      )}
      {study.uid_generated && (
        <div className="demo" role="note" data-testid="uid-made">STUDY UID MADE HERE <span>The images carry no StudyInstanceUID, so Heimdallr made one. The PACS does not know this study under it, and images that are sent later join it only when one of these comes with them; alone they become another study.</span></div>
      )}
      {older !== null && <div className="demo" role="status" data-testid="older-result">⟲ {older}</div>}
      <main id="content" className="study">
        <Viewer detail={detail.data} bleed={hasBleed(measurements)} />
        <section className="panel" aria-label="Results">
          {sentence !== null && (
            <section>
              <div className={study.state === "failed" ? "word failed" : "word"} role="status" data-testid="state-words">
                <p>{sentence}</p>
                {canRetry(study.state) && <Because study={study} job={detail.data.job} explained={detail.data.series.some((item) => item.reject_code !== null)} />}
                {again !== null && <p data-testid="retried">{again}</p>}
                {retryHelps(study) ? <Retry uid={study.study_uid} /> : canRetry(study.state) && <p className="hint" data-testid="no-retry">Another run on the same images would end the same way. Choose a series below, or send the images that are missing.</p>}
                {canComplete(study.state) && <CompleteNow uid={study.study_uid} />}
              </div>
            </section>
          )}
          <section>
            <h2>Urgency</h2>
            <div className="urgency-box">
              <UrgencyPill study={study} />
              <span>{urgencyWords(study)}</span>
            </div>
            {findings.some((finding) => finding.text !== study.urgency_reason) && older !== null && <p className="hint">Findings of the older result:</p>}
            {findings.some((finding) => finding.text !== study.urgency_reason) && (
              <ul>{findings.map((finding) => <li key={finding.id}>{finding.text}</li>)}</ul>
            )}
          </section>
          <section>
            <h2>Measurements <span className="pill small ai">AI</span>{older !== null && <span className="pill small urg">OLDER RESULT</span>}</h2>
            {results.error !== null && <Failure error={results.error} />}
            {detail.data.result === null ? <p className="mute">{noneWords("measurement", study.state)}</p> : <Measurements rows={measurements} />}
          </section>
          <LeftOut tasks={leftOutOf(results.data)} />
          <Completion detail={detail.data} />
          <SeriesTable detail={detail.data} />
          <Stages stages={detail.data.stages} job={detail.data.job} state={study.state} />
          <Files artifacts={detail.data.artifacts} state={study.state} />
          <History history={detail.data.history} />
        </section>
      </main>
    </>
  );
}

/** Why it ended without a result. What the series table says in full is not said twice. */
function Because({ study, job, explained }: { study: StudySummary; job: StudyDetail["job"]; explained: boolean }) {
  if (study.reason_code === null) return <p className="hint">{study.reason ?? "No reason was recorded."}</p>;
  const behind = behindExhaustion(study, job);
  if (behind !== null) return <><Why code={behind.code} detail={behind.detail} lead /><Why code={study.reason_code} /></>;
  return <Why code={study.reason_code} detail={study.reason_code === "no_usable_series" && explained ? null : study.reason} lead />;
}

function Retry({ uid }: { uid: string }) {
  const client = useQueryClient();
  const refetch = () => {
    for (const queryKey of [["study", uid], ["studies"], ["status"]]) void client.invalidateQueries({ queryKey });
  };
  const retry = useMutation({ mutationFn: () => retryStudy(uid), onSettled: refetch });
  return (
    <p>
      <button type="button" data-testid="retry" disabled={retry.isPending || retry.isSuccess} onClick={() => retry.mutate()}>Retry the analysis</button>
      {retry.isSuccess && <span role="status"> queued again</span>}
      {retry.error !== null && <span role="alert" className="bad"> It was not queued: {retry.error.message}</span>}
    </p>
  );
}

function Identity({ study }: { study: StudySummary }) {
  const when = [dicomDate(study.study_date), dicomTime(study.study_time)].filter((part) => part !== "").join(" ");
  return (
    <div className="identity">
      <UrgencyPill study={study} />
      <h1>{personName(study.patient_name)}</h1>
      <div className="facts">
        <span>{sexAndAge(study.patient_sex, study.patient_birth_date, study.study_date, new Date()) || "sex and age unknown"}</span>
        <span>MRN <b className="mono">{study.patient_id ?? "—"}</b></span>
        <span>Accession <b className="mono">{study.accession_number ?? "—"}</b></span>
        <span><b>{studyName(study.modalities, study.study_description)}</b></span>
        {when === "" ? <span>study date unknown</span> : <span title="Study Date and Time as the scanner wrote them: its own clock, in its own zone">{when}{dicomTime(study.study_time) !== "" && " scanner time"}</span>}
        <span title="The door of its first image; others may have come by other doors">{counted(study.n_instances, "image")}, first by {doorName(study.door)}</span>
      </div>
      <span className="grow" />
      <StatePill study={study} />
    </div>
  );
}

function Viewer({ detail, bleed }: { detail: StudyDetail; bleed: boolean }) {
  const [tab, setTab] = useState<"images" | "volume">("images");
  const [overlay, setOverlay] = useState(true);
  const offered = tab === "images" ? hasOverlay(keyPictures(detail.artifacts)) : detail.viewer?.overlays.some((item) => item.same_grid) === true;
  const toggle = () => setOverlay((old) => !old);
  useKeys({ ...(offered ? { o: toggle } : {}), "1": () => setTab("images"), "2": () => setTab("volume") });
  return (
    <section className="viewer" aria-label="Images">
      <div className="tabs">
        <div role="tablist" aria-label="View">
          <button role="tab" id="tab-images" aria-controls="stage" aria-selected={tab === "images"} onClick={() => setTab("images")}>Key images</button>
          <button role="tab" id="tab-volume" aria-controls="stage" aria-selected={tab === "volume"} disabled={detail.viewer === null} onClick={() => setTab("volume")}>Volume</button>
        </div>
        <span className="grow" />
        {offered && <button aria-pressed={overlay} onClick={toggle} data-testid="overlay">Overlay {overlay ? "on" : "off"} <kbd>o</kbd></button>}
      </div>
      {tab === "images" ? (
        <Gallery artifacts={detail.artifacts} overlay={overlay} state={detail.study.state} />
      ) : detail.viewer === null ? (
        <div className="stage"><p className="waiting">There is no volume to show.</p></div>
      ) : (
        <Suspense fallback={<div className="stage"><p className="waiting">Loading the viewer</p></div>}>
          <VolumeTab key={bleed ? "bleed" : "all"} bleed={bleed} viewer={detail.viewer} artifacts={detail.artifacts} overlay={overlay} synthetic={detail.study.synthetic} />
        </Suspense>
      )}
    </section>
  );
}
