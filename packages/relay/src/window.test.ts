import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Slot, Window } from './window.ts'

test('the cursor stands at the last event before which nothing is open', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(99), { maxLength: 60 }), order => {
      const window = new Window(7)
      const slots: Slot[] = order.map((_, i) => window.add(10 + i * 2))
      const done = new Set<Slot>()
      // Ends them in an order of chance, each once.
      for (const [i, slot] of slots.map((slot, i) => [order[i]!, slot] as const).sort(([a], [b]) => a - b)) {
        assert.ok(i >= 0)
        window.done(slot)
        done.add(slot)
        const open = slots.findIndex(slot => !done.has(slot))
        const before = open < 0 ? slots.at(-1) : slots[open - 1]
        assert.equal(window.cursor, before?.seq ?? 7)
        assert.equal(window.size, open < 0 ? 0 : slots.length - open)
      }
    }),
  )
})

test('many events leave nothing behind', () => {
  const window = new Window(null)
  for (let i = 1; i <= 10_000; i++) window.done(window.add(i))
  assert.deepEqual([window.cursor, window.size], [10_000, 0])
})
