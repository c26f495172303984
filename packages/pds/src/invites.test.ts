import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { inviteCode, routineInvites } from './invites.ts'
import type { InviteCode } from './store/store.ts'

const DAY = 86_400_000
const alice = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const code = (createdAt: number, more: Partial<InviteCode> = {}): InviteCode => ({
  code: 'x',
  uses: 1,
  disabled: false,
  forAccount: alice,
  createdBy: alice,
  createdAt,
  usedBy: [],
  ...more,
})
const used = { usedBy: [{ did: alice as Did, at: 1 }] }

test('a code names the server and is no link', () => {
  assert.match(inviteCode('pds.example.com', new Uint8Array(7).fill(200)), /^pds-example-com-[a-z2-7]{5}-[a-z2-7]{5}$/)
})

test('a code is earned in each interval after the epoch, and five wait at most', () => {
  const of = (codes: InviteCode[], accountCreatedAt: number, now: number, epoch = 0) =>
    routineInvites({ accountCreatedAt, codes, epoch, intervalMs: DAY, now })
  const t = 1_000 * DAY
  assert.deepEqual(of([], t, t + DAY - 1), { count: 0, total: 0 })
  assert.deepEqual(of([], t, t + DAY), { count: 1, total: 1 })
  assert.deepEqual(of([], t, t + 3 * DAY), { count: 3, total: 3 })
  assert.deepEqual(of([], t, t + 100 * DAY), { count: 5, total: 5 })
  assert.deepEqual(of([code(t + 1), code(t + 2)], t, t + 3 * DAY), { count: 1, total: 3 })
  assert.deepEqual(of([code(t + 1, used), code(t + 2, used)], t, t + 3 * DAY), { count: 1, total: 3 })
  assert.deepEqual(
    of(
      Array.from({ length: 5 }, () => code(t + 1)),
      t,
      t + 100 * DAY,
    ),
    { count: 0, total: 5 },
  )
  assert.deepEqual(of([code(t + 1, used), ...Array.from({ length: 4 }, () => code(t + 1))], t, t + 100 * DAY), {
    count: 1,
    total: 6,
  })
  assert.deepEqual(of([code(t + 1, { createdBy: 'admin' })], t, t + DAY), { count: 1, total: 1 }, 'gifts do not count')
  assert.deepEqual(of([], t, t + 10 * DAY, t + 8 * DAY), { count: 2, total: 2 }, 'the epoch is within the life')
  assert.deepEqual(of([code(t + DAY)], t, t + 10 * DAY, t + 8 * DAY), { count: 2, total: 3 }, 'codes from before it')
  assert.deepEqual(
    of([code(t + 1), code(t + 2), code(t + 3)], t, t + 2 * DAY),
    { count: 0, total: 3 },
    'never below none',
  )
})
