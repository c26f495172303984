import assert from 'node:assert/strict'
import { test } from 'node:test'
import { utf8 } from '@millisky/core/bytes'
import { Cid } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import fc from 'fast-check'
import { Plan } from './plan.ts'
import type { RecordWrite } from './store/store.ts'

const PATHS = ['a.b.c/1', 'a.b.c/2']

function write(action: RecordWrite['action'], path: string, text: string): RecordWrite {
  if (action === 'delete') return { action, path }
  const bytes = utf8(text)
  return { action, path, bytes, cid: Cid.ofCbor(bytes), blobs: [], subject: null }
}

/** Writes a batch one after the other; null when one does not fit. */
function writeEach(there: Map<string, string>, writes: readonly RecordWrite[]): Map<string, string> | null {
  const after = new Map(there)
  for (const one of writes) {
    if ((one.action === 'create') === after.has(one.path)) return null
    if (one.action === 'delete') after.delete(one.path)
    else after.set(one.path, one.cid.toString())
  }
  return after
}

test('what is planned comes to the same as the writes one after the other', () => {
  const actions = fc.constantFrom<RecordWrite['action']>('create', 'update', 'delete')
  const steps = fc.array(fc.tuple(actions, fc.constantFrom(...PATHS)), { minLength: 1, maxLength: 6 })
  fc.assert(
    fc.property(fc.subarray(PATHS), steps, (present, batch) => {
      const there = new Map(present.map(path => [path, 'before']))
      const writes = batch.map(([action, path], i) => write(action, path, `${i}`))
      const wanted = writeEach(there, writes)
      const plan = new Plan()
      let fits = true
      try {
        for (const one of writes) plan.add(one)
      } catch (error) {
        assert.ok(error instanceof Refused)
        fits = false
      }
      if (plan.fleeting.some(path => there.has(path))) fits = false
      const planned = fits ? writeEach(there, plan.writes) : null
      assert.deepEqual(planned && new Map([...planned].sort()), wanted && new Map([...wanted].sort()))
      assert.equal(new Set(plan.writes.map(({ path }) => path)).size, plan.writes.length)
    }),
    { numRuns: 2_000 },
  )
})
