import { useMutation, useQueryClient } from "@tanstack/react-query";
import { Fragment, useState } from "react";
import { chooseSeries } from "../api/client";
import type { ChoiceView, SeriesPartView, SeriesView, StudyDetail } from "../api/types";
import { clockTime, studyName } from "../lib/format";
import { canBeChosen, chosenWords, effectTone, isTilted, rulesWords, scoreWords, seriesName, tiltOf, wishesOf } from "../lib/series";
import { canChoose, noneWords } from "../lib/states";
import { Why } from "../ui";
import { Ask } from "./Ask";

/** Which series was measured, every rule that judged each, and another choice. */
export function SeriesTable({ detail }: { detail: StudyDetail }) {
  const { series, study, choice } = detail;
  const able = canChoose(study.state);
  return (
    <section>
      <h2>Series</h2>
      {choice !== null && <Chosen uid={study.study_uid} choice={choice} series={series} able={able} />}
      {series.length === 0 ? <p className="mute">{noneWords("series", study.state)}</p> : (
        <div className="wrap">
          <table>
            <thead><tr><th scope="col" className="num">No.</th><th scope="col">Series</th><th scope="col" className="num">Images</th><th scope="col">Choice</th></tr></thead>
            <tbody>
              {series.map((item) => <Row key={item.series_uid} uid={study.study_uid} state={study.state} item={item} able={able} standing={choice !== null && choice.series_uid === item.series_uid} choice={choice} />)}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Row({ uid, state, item, able, standing, choice }: { uid: string; state: string; item: SeriesView; able: boolean; standing: boolean; choice: ChoiceView | null }) {
  const [open, setOpen] = useState(false);
  const name = studyName(item.modality === null ? [] : [item.modality], item.series_description, "series without a name");
  const alone = item.selection?.parts.length === 1;
  const measuredTilt = item.chosen === true ? tiltOf(flagsOf(item.geometry)) : null;
  // A person's series that no run has measured yet: its headers tell of the tilt, the wish what becomes of it.
  const tilt = measuredTilt ?? (standing && item.selection?.parts.some(isTilted) === true ? (choice?.deskew === true ? "taken out" : "left in") : null);
  const byPerson = item.selection?.parts.some((part) => part.accepted && part.chosen_by === "person") === true;
  return (
    <Fragment>
      <tr data-series={item.series_uid}>
        <td className="num">{item.series_number ?? "—"}</td>
        <td>
          {item.selection === null ? name : (
            <button type="button" className="disclose" aria-expanded={open} title="every rule" onClick={() => setOpen(!open)}>{name}</button>
          )}
          <div className="hint">{geometryWords(item.geometry)}</div>
        </td>
        <td className="num">{item.n_instances}</td>
        <td>
          {item.chosen === null && <span className="hint">not decided</span>}
          {item.chosen === true && <span className="chosen">{state === "done" ? "✓ " : ""}{chosenWords(state, byPerson)}</span>}
          {item.chosen === false && <Why code={item.reject_code ?? "not_chosen"} detail={item.reason} />}
          {item.chosen !== false && item.reason !== null && <div className="hint">{item.reason}</div>}
          {flagsOf(item.geometry).map((flag) => <Why key={flag} code={flag} />)}
        </td>
      </tr>
      {open && item.selection !== null && (
        <tr className="more" data-rules={item.series_uid}>
          <td colSpan={4}>
            {item.selection.rules !== null && <p className="hint">{rulesWords(item.selection.rules)}</p>}
            {item.selection.parts.map((part) => (
              <Fragment key={part.part}>
                <Lines part={part} alone={alone} />
                {able && !alone && part.can_be_chosen && <Measure uid={uid} seriesUid={item.series_uid} part={part.part} tilted={isTilted(part)} choice={choice} label={`Measure part ${part.part}`} />}
              </Fragment>
            ))}
            {able && alone && !standing && canBeChosen(item) && <Measure uid={uid} seriesUid={item.series_uid} part={null} tilted={item.selection.parts.some(isTilted)} choice={choice} label="Measure this series" offerTilt={tilt === null} />}
            {able && tilt !== null && (
              <Choose uid={uid} seriesUid={null} part={null} deskew={tilt === "left in"} label={tilt === "left in" ? "Take the tilt out" : "Leave the tilt in"} />
            )}
            {!canBeChosen(item) && <p className="hint">It is no volume and cannot be chosen.</p>}
            {!able && canBeChosen(item) && !standing && <p className="hint">Another series can be chosen once the study has ended.</p>}
          </td>
        </tr>
      )}
    </Fragment>
  );
}

function Lines({ part, alone }: { part: SeriesPartView; alone: boolean }) {
  return (
    <table className="rules">
      {!alone && <caption>Part {part.part}, {part.instances} images: {part.code}</caption>}
      <thead><tr><th scope="col">Rule</th><th scope="col">Value</th><th scope="col">Effect</th><th scope="col" className="num">Score</th></tr></thead>
      <tbody>
        {part.lines.map((line, index) => (
          <tr key={index} data-rule={line.rule}>
            <td className="mono">{line.rule}</td>
            <td className="value-of">{line.value}</td>
            <td className={effectTone(line.effect)}>{line.effect}</td>
            <td className="num">{scoreWords(line.score)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Measures a series as the tilt is wished so far, or with it taken out: what has no tilt is asked neither. */
function Measure({ uid, seriesUid, part, tilted, choice, label, offerTilt = true }: { uid: string; seriesUid: string; part: number | null; tilted: boolean; choice: ChoiceView | null; label: string; offerTilt?: boolean }) {
  const wished = tilted ? (choice?.deskew ?? null) : null;
  return (
    <>
      <Choose uid={uid} seriesUid={seriesUid} part={part} deskew={wished} label={label} />
      {tilted && offerTilt && wished !== true && <Choose uid={uid} seriesUid={seriesUid} part={part} deskew={true} label={`${label}, the tilt taken out`} />}
    </>
  );
}

/** A person's standing choice, and the way back to the rules. */
function Chosen({ uid, choice, series, able }: { uid: string; choice: ChoiceView; series: SeriesView[]; able: boolean }) {
  const named = choice.series_uid === null ? null : seriesName(series.find((item) => item.series_uid === choice.series_uid));
  return (
    <div className="word" role="note" data-testid="choice">
      {wishesOf(named, choice).map(({ what, who, at, why }) => <p key={what}>{what}: {who}, {clockTime(at, new Date())}: {why}</p>)}
      {choice.series_uid !== null && <p className="hint mono">{choice.series_uid}</p>}
      {able && <Choose uid={uid} seriesUid={null} part={null} label={choice.series_uid === null ? "As the settings say" : "Let the rules choose again"} />}
    </div>
  );
}

function Choose({ uid, seriesUid, part, deskew = null, label }: { uid: string; seriesUid: string | null; part: number | null; deskew?: boolean | null; label: string }) {
  const client = useQueryClient();
  const choose = useMutation({
    mutationFn: ({ reason, by }: { reason: string; by: string }) => chooseSeries(uid, { series_uid: seriesUid, part, deskew, keep_series: true, reason, chosen_by: by }),
    onSettled: () => {
      for (const queryKey of [["study", uid], ["studies"], ["status"]]) void client.invalidateQueries({ queryKey });
    },
  });
  return <Ask label={label} testId="choose" failed="It was not queued" pending={choose.isPending} error={choose.error} send={(reason, by) => choose.mutateAsync({ reason, by })} />;
}

function geometryWords(geometry: SeriesView["geometry"]): string {
  const shape = geometry?.["shape"];
  const spacing = geometry?.["spacing_mm"];
  const list = (value: unknown, digits: number) => (Array.isArray(value) ? value.map((item) => (typeof item === "number" ? String(Number(item.toFixed(digits))) : "?")).join("×") : "");
  return [list(shape, 0), spacing === undefined ? "" : `${list(spacing, 2)} mm`].filter((part) => part !== "").join(", ");
}

function flagsOf(geometry: SeriesView["geometry"]): string[] {
  const flags = geometry?.["flags"];
  return Array.isArray(flags) ? flags.filter((flag): flag is string => typeof flag === "string") : [];
}
