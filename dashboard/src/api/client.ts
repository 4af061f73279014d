import { authorization } from "./token";
import type { CompletionAccepted, CompletionWanted, Reasons, RetryAccepted, SeriesChoiceAccepted, SeriesWanted, StatusView, StudyDetail, StudyPage, UploadResult } from "./types";

const TIMEOUT_MS = 30_000;

/** What the server said, or that it said nothing. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
  ) {
    super(detail);
    this.name = "ApiError";
  }
}

/** The error in a response body of the one shape {"error": {"code", "detail"}}. */
export function errorOf(status: number, body: unknown): ApiError {
  if (typeof body === "object" && body !== null && "error" in body) {
    const { error } = body as { error: unknown };
    if (typeof error === "object" && error !== null && "code" in error && "detail" in error) {
      return new ApiError(status, String(error.code), String(error.detail));
    }
  }
  return new ApiError(status, "http_error", `the server answered ${status}`);
}

async function request(path: string, signal?: AbortSignal, timeoutMs = TIMEOUT_MS, method = "GET", body?: object): Promise<Response> {
  const timeout = AbortSignal.timeout(timeoutMs);
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? authorization() : { ...authorization(), "Content-Type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
    });
  } catch (error) {
    if (signal?.aborted === true) throw error;
    throw new ApiError(0, "unreachable", "the server does not answer");
  }
  if (!response.ok) throw errorOf(response.status, await response.json().catch(() => null));
  return response;
}

async function json<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await request(path, signal)).json()) as T;
}

export interface WorklistQuery {
  q: string;
  state: string;
  offset: number;
  limit: number;
}

export function worklistPath({ q, state, offset, limit }: WorklistQuery): string {
  const query = new URLSearchParams({ limit: String(limit), offset: String(offset) });
  if (state !== "") query.set("state", state);
  if (q.trim() !== "") query.set("q", q.trim());
  return `/api/v1/studies?${query.toString()}`;
}

export const studyPath = (uid: string): string => `/api/v1/studies/${encodeURIComponent(uid)}`;

export const getStudies = (query: WorklistQuery, signal?: AbortSignal): Promise<StudyPage> =>
  json<StudyPage>(worklistPath(query), signal);
export const getStudy = (uid: string, signal?: AbortSignal): Promise<StudyDetail> => json<StudyDetail>(studyPath(uid), signal);
export const getResults = (uid: string, signal?: AbortSignal): Promise<unknown> =>
  json<unknown>(`${studyPath(uid)}/results`, signal);
export const getStatus = (signal?: AbortSignal): Promise<StatusView> => json<StatusView>("/api/v1/status", signal);
export const getReasons = (signal?: AbortSignal): Promise<Reasons> => json<Reasons>("/api/v1/reasons", signal);
export const retryStudy = async (uid: string): Promise<RetryAccepted> =>
  (await (await request(`${studyPath(uid)}/retry`, undefined, TIMEOUT_MS, "POST")).json()) as RetryAccepted;
export const chooseSeries = async (uid: string, wanted: SeriesWanted): Promise<SeriesChoiceAccepted> =>
  (await (await request(`${studyPath(uid)}/series`, undefined, TIMEOUT_MS, "POST", wanted)).json()) as SeriesChoiceAccepted;
export const completeStudy = async (uid: string, wanted: CompletionWanted): Promise<CompletionAccepted> =>
  (await (await request(`${studyPath(uid)}/complete`, undefined, TIMEOUT_MS, "POST", wanted)).json()) as CompletionAccepted;
export const getBlob = async (url: string, signal?: AbortSignal): Promise<Blob> => (await request(url, signal, 300_000)).blob();
export const getBytes = async (url: string, signal?: AbortSignal): Promise<ArrayBuffer> =>
  (await request(url, signal, 300_000)).arrayBuffer();

/** Upload with progress, which fetch cannot report. */
export function uploadZip(file: File, onProgress: (part: number) => void): Promise<UploadResult> {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("POST", "/api/v1/upload");
    for (const [name, value] of Object.entries(authorization())) call.setRequestHeader(name, value);
    call.responseType = "json";
    call.upload.onprogress = (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    call.onload = () => {
      if (call.status === 200) resolve(call.response as UploadResult);
      else reject(errorOf(call.status, call.response));
    };
    call.onerror = () => reject(new ApiError(0, "unreachable", "the connection broke during the upload"));
    call.onabort = () => reject(new ApiError(0, "cancelled", "the upload was cancelled"));
    const form = new FormData();
    form.append("file", file);
    call.send(form);
  });
}
