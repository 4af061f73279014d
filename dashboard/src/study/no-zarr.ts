/** Stands in for zarrita, NiiVue's reader of Zarr images. The server sends NIfTI only, and zarrita would bring three
 * compiled C libraries (Blosc, LZ4, Zstandard) of 1.4 MB into the build. */

const refuse = (): never => {
  throw new Error("this build reads no Zarr images");
};

export class FetchStore {
  constructor() {
    refuse();
  }
}
export const root = refuse;
export const open = refuse;
export const get = refuse;
export const slice = refuse;
