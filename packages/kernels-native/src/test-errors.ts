import { KernelError, type KernelErrorCode } from "./error.js";

/** What `call` throws or rejects with, which must be a KernelError of this code. */
export async function failure(code: KernelErrorCode, call: () => unknown): Promise<KernelError> {
  try {
    await call();
  } catch (error) {
    if (error instanceof KernelError && error.code === code) return error;
    throw error;
  }
  throw new Error(`nothing failed with ${code}`);
}
