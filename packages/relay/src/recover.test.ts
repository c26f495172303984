import assert from 'node:assert/strict'
import { test } from 'node:test'
import { accountEvent, encodeFrame, identityEvent, withSeq } from '@millisky/core/event'
import { TIME, testDid } from '@millisky/core/testing-repos'
import { accountNumber } from './accounts.ts'
import { recoverForeign, recoverFrame } from './recover.ts'

test('of another relay events of kinds that nobody knows are read back as well, whole ones only', () => {
  const did = testDid('alice')
  const known = withSeq(encodeFrame(identityEvent({ did }, TIME)), 7)
  const expected = { seq: 7, account: accountNumber(did), time: Date.parse(TIME) }
  assert.deepEqual([recoverFrame(known), recoverForeign(known)], [expected, expected])
  const odd = withSeq(encodeFrame({ t: '#tomorrow', body: { seq: 0, x: 1 } }), 8)
  assert.deepEqual([recoverFrame(odd), recoverForeign(odd)], [null, { seq: 8, account: 0, time: 0 }])
  const bad = withSeq(encodeFrame({ t: '#identity', body: { seq: 0, time: 5 } }), 9)
  assert.deepEqual([recoverFrame(bad), recoverForeign(bad)?.seq], [null, 9])
  for (const frame of [known, odd]) {
    for (let size = 0; size < frame.length; size++) assert.equal(recoverForeign(frame.subarray(0, size)), null)
  }
})

test('the word of a takedown is not hidden with the account when the index is lost', () => {
  const did = testDid('alice')
  const account = (status: string) =>
    recoverFrame(withSeq(encodeFrame(accountEvent({ did, active: false, status }, TIME)), 7))?.account
  assert.deepEqual([account('takendown'), account('suspended')], [0, accountNumber(did)])
})
