import type { components } from "./schema";

type Schemas = components["schemas"];
export type StudySummary = Schemas["StudySummary"];
export type StudyPage = Schemas["StudyPage"];
export type StudyDetail = Schemas["StudyDetail"];
export type SeriesView = Schemas["SeriesView"];
export type StageView = Schemas["StageView"];
export type HistoryView = Schemas["HistoryView"];
export type ArtifactView = Schemas["ArtifactView"];
export type ViewerView = Schemas["ViewerView"];
export type Reasons = Schemas["Reasons"];
export type RetryAccepted = Schemas["RetryAccepted"];
export type UploadResult = Schemas["UploadResult"];
export type StatusView = Schemas["StatusView"];
