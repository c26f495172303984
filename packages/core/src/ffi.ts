/**
 * `node:ffi`: functions of a shared library, called without an addon that is compiled for them.
 *
 * Declared here is what is used of it. Node calls it experimental and may change it; the project pins its Node.
 */
import { createRequire } from 'node:module'

/** The name of a type in C. `pointer` is passed as an address, a bigint. */
type CType = 'pointer' | 'i32' | 'u32'

/** How a function is called: nothing checks that this is so. */
export interface Signature {
  readonly return: CType
  readonly arguments: readonly CType[]
}

/** Takes and gives numbers for `i32` and `u32`, bigints for `pointer`. */
export type ForeignFunction = (...args: readonly (number | bigint)[]) => number | bigint

/** A library that is loaded. Its functions may be called for as long as it is referenced. */
export interface Library {
  /** @throws Error when one of them is not in the library. */
  getFunctions(signatures: Readonly<Record<string, Signature>>): Record<string, ForeignFunction>
}

export interface Ffi {
  /** How files of libraries end here: `so`, `dylib` or `dll`. */
  readonly suffix: string
  /** Loads a library as the system does: a bare name is looked for in the system's own folders. @throws Error */
  readonly DynamicLibrary: new (
    name: string,
  ) => Library
  /** The address of the first byte, good for as long as `memory` is referenced and not transferred. */
  getRawPointer(memory: ArrayBuffer): bigint
}

/**
 * `node:ffi`, or null in a Node that lacks it, or was started with `--no-experimental-ffi`.
 *
 * Its loading warns that it is experimental: once in each thread, on the stderr of a daemon. Whoever uses it here has made
 * sure of it otherwise, so that word is left out, and only that one.
 */
export function loadFfi(): Ffi | null {
  const { emitWarning } = process
  process.emitWarning = () => {}
  try {
    return createRequire(import.meta.url)('node:ffi') as Ffi
  } catch {
    return null
  } finally {
    process.emitWarning = emitWarning
  }
}
