import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import openapiTS, { astToString, COMMENT_HEADER } from "openapi-typescript";
import { expect, it } from "vitest";

it("types are those of the committed OpenAPI document (npm run types)", async () => {
  const root = resolve(import.meta.dirname, "../..");
  const made = COMMENT_HEADER + astToString(await openapiTS(new URL(`file://${root}/openapi.json`)));
  expect(readFileSync(resolve(root, "src/api/schema.ts"), "utf8").trim()).toBe(made.trim());
}, 30_000);
