import { copyFileSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

const OUT = resolve(import.meta.dirname, "../heimdallr_ray/dashboard/static");
const MODULES = resolve(import.meta.dirname, "node_modules");
const SWAGGER_FOLDER = "node_modules/swagger-ui-dist";
const SWAGGER_NOTICE = "swagger-ui-bundle.js.LICENSE.txt";
const SWAGGER = ["swagger-ui-bundle.js", "swagger-ui.css"];
// The package carries no licence file; the text is its repository's.
const LICENCE_BY_HAND: Record<string, string> = { "node_modules/@niivue/niivue": "licences/niivue.txt" };

/** The API's documentation page works without a network: its assets come from the npm package, at build time. */
function swaggerUi(): Plugin {
  return {
    name: "swagger-ui",
    closeBundle() {
      mkdirSync(join(OUT, "docs"), { recursive: true });
      for (const name of SWAGGER) copyFileSync(join(MODULES, "swagger-ui-dist", name), join(OUT, "docs", name));
    },
  };
}

interface Locked {
  version: string;
  license: string;
  dev?: boolean;
  optional?: boolean;
}

/** Name, version, licence and texts of one package that package-lock.json has for production. */
function notice([path, entry]: [string, Locked]): string {
  const folder = resolve(import.meta.dirname, path);
  const files = readdirSync(folder).filter((file) => /^(licen[cs]e|notice|copying)/i.test(file)).map((file) => join(folder, file));
  const byHand = LICENCE_BY_HAND[path];
  if (byHand !== undefined) files.push(resolve(import.meta.dirname, byHand));
  if (path === SWAGGER_FOLDER) files.push(join(folder, SWAGGER_NOTICE));
  if (files.length === 0) throw new Error(`${path} carries no licence text: add it to LICENCE_BY_HAND`);
  const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
  return [`${name} ${entry.version} (${entry.license})`, ...files.map((file) => readFileSync(file, "utf8").trim())].join("\n\n");
}

/** The licence texts of what is shipped, as their licences ask: of every production package, bundled by another one or not. */
function notices(): Plugin {
  return {
    name: "notices",
    closeBundle() {
      const lock = JSON.parse(readFileSync(join(import.meta.dirname, "package-lock.json"), "utf8")) as { packages: Record<string, Locked> };
      const shipped = Object.entries(lock.packages).filter(([path, entry]) => path !== "" && !entry.dev && !entry.optional);
      writeFileSync(join(OUT, "NOTICES.txt"), shipped.map(notice).join(`\n\n${"-".repeat(80)}\n\n`) + "\n");
    },
  };
}

/** Compressed once here instead of on each request. */
function compressed(): Plugin {
  return {
    name: "compressed",
    closeBundle() {
      for (const entry of readdirSync(OUT, { recursive: true, encoding: "utf8" })) {
        const path = join(OUT, entry);
        if (/\.(js|css)$/.test(entry) && statSync(path).size > 10_000) {
          mkdirSync(dirname(path), { recursive: true });
          writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
        }
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), swaggerUi(), notices(), compressed()],
  resolve: { alias: { zarrita: resolve(import.meta.dirname, "src/study/no-zarr.ts") } },
  build: {
    outDir: OUT,
    emptyOutDir: true,
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 4000,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": "http://127.0.0.1:8001", "/upload": "http://127.0.0.1:8001" } },
  // The order of closeBundle hooks is the order of plugins: compress what the others have written.
});
