// The data model and CID vectors that all implementations of atproto share.
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { test } from 'node:test'
import { base64, unbase64 } from '@millisky/core/bytes'
import { decode, encode } from '@millisky/core/cbor'
import { Cid, isCidSyntax } from '@millisky/core/cid'
import { Malformed } from '@millisky/core/errors'
import { checkData, type JsonValue, recordFromJson, toJson } from '@millisky/core/json'

const vectors = resolve(import.meta.dirname, '../../../shared/fixtures/atproto-interop')
const skip = existsSync(vectors) ? false : 'the interop vectors are not beside this checkout'
const read = (path: string) => readFileSync(join(vectors, path), 'utf8')
const json = <T>(path: string): T[] => JSON.parse(read(path))
/** Lines that are neither empty nor comments; blanks at their ends count. */
const lines = (path: string) =>
  read(path)
    .split('\n')
    .filter(line => line !== '' && !line.startsWith('#'))

test('data-model-fixtures: JSON, CBOR and CID belong together', { skip }, () => {
  const fixtures = json<{ json: JsonValue; cbor_base64: string; cid: string }>('data-model/data-model-fixtures.json')
  assert.ok(fixtures.length > 0)
  for (const fixture of fixtures) {
    const bytes = encode(recordFromJson(fixture.json))
    assert.equal(base64(bytes), fixture.cbor_base64.replace(/=+$/, ''))
    assert.equal(Cid.ofCbor(bytes).toString(), fixture.cid)
    const decoded = decode(unbase64(fixture.cbor_base64))
    assert.deepEqual(toJson(decoded), fixture.json)
    checkData(decoded)
  }
})

test('data-model-valid', { skip }, () => {
  for (const { note, json: value } of json<{ note: string; json: JsonValue }>('data-model/data-model-valid.json')) {
    const record = recordFromJson(value)
    assert.deepEqual(decode(encode(record)), record, note)
    assert.deepEqual(toJson(record), value, note)
  }
})

test('data-model-invalid', { skip }, () => {
  for (const { note, json: value } of json<{ note: string; json: JsonValue }>('data-model/data-model-invalid.json')) {
    assert.throws(() => recordFromJson(value), Malformed, note)
  }
})

test('cid_syntax: what the lexicon format admits, and what it does not', { skip }, () => {
  for (const line of lines('syntax/cid_syntax_valid.txt')) assert.ok(isCidSyntax(line), line)
  for (const line of lines('syntax/cid_syntax_invalid.txt')) assert.ok(!isCidSyntax(line), line)
})

test('cid_syntax: CIDs as atproto writes them are read and written the same', { skip }, () => {
  const ours = lines('syntax/cid_syntax_valid.txt').filter(line => /^b[a-z2-7]{58}$/.test(line))
  assert.ok(ours.length > 0)
  for (const line of ours) assert.equal(Cid.parse(line).toString(), line)
})
