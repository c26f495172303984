/** Memory for small byte strings that are made in great numbers. */

/**
 * Gives out zeroed byte strings that share memory in slabs of this many bytes: memory of its own costs a small one more than
 * filling it. A slab is freed when all that is in it is, so what lives long copies itself. Larger ones than an eighth of a
 * slab have memory of their own.
 */
export function createSlab(slabBytes: number): (length: number) => Uint8Array {
  let slab = new ArrayBuffer(0)
  let used = 0
  return length => {
    if (length > slabBytes / 8) return new Uint8Array(length)
    if (used + length > slab.byteLength) {
      slab = new ArrayBuffer(slabBytes)
      used = 0
    }
    const bytes = new Uint8Array(slab, used, length)
    used += length
    return bytes
  }
}
