import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, test } from 'node:test'
import { Cid } from '@millisky/core/cid'
import { readSettings } from '@millisky/server/config'
import { settings } from '../config.ts'
import { basic, startTestPds } from '../testing-pds.ts'
import { createS3Blobs } from './s3.ts'
import { s3Place } from './settings.ts'
import { startS3 } from './testing-s3.ts'

const place = (env: Record<string, string>) => s3Place(readSettings(settings, [], { env }))

test('the settings of the reference name a bucket', () => {
  assert.equal(place({}), null)
  assert.deepEqual(
    place({
      PDS_BLOBSTORE_S3_BUCKET: 'blobs',
      PDS_BLOBSTORE_S3_REGION: 'eu-central-1',
      PDS_BLOBSTORE_S3_ENDPOINT: 'https://s3.example.com',
      PDS_BLOBSTORE_S3_FORCE_PATH_STYLE: 'true',
      PDS_BLOBSTORE_S3_ACCESS_KEY_ID: 'id',
      PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY: 'secret',
      PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS: '30000',
      PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS: '7000',
    }),
    {
      bucket: 'blobs',
      region: 'eu-central-1',
      endpoint: 'https://s3.example.com',
      forcePathStyle: true,
      credentials: { accessKeyId: 'id', secretAccessKey: 'secret' },
      uploadTimeoutMs: 30_000,
      requestTimeoutMs: 7_000,
    },
  )
  const bucket = { PDS_BLOBSTORE_S3_BUCKET: 'blobs' }
  assert.throws(() => place({ ...bucket, PDS_BLOBSTORE_DISK_LOCATION: '/blobs' }), /folder or in a bucket/)
  assert.throws(() => place({ ...bucket, PDS_BLOBSTORE_S3_ACCESS_KEY_ID: 'id' }), /both its id and its secret/)
})

test('a PDS keeps its blobs in a bucket', async t => {
  const s3 = await startS3({ after })
  const pds = await startTestPds(t, {
    PDS_BLOBSTORE_S3_BUCKET: s3.bucket,
    PDS_BLOBSTORE_S3_REGION: s3.region!,
    PDS_BLOBSTORE_S3_ENDPOINT: s3.endpoint,
    PDS_BLOBSTORE_S3_FORCE_PATH_STYLE: 'true',
    PDS_BLOBSTORE_S3_ACCESS_KEY_ID: s3.credentials!.accessKeyId,
    PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY: s3.credentials!.secretAccessKey,
  })
  const bucket = createS3Blobs(s3)
  const alice = await pds.user('alice')
  const headers = { 'content-type': 'application/octet-stream' }
  for (const size of [200_000, 7_000_000]) {
    const bytes = new Uint8Array(randomBytes(size))
    const { json } = await pds.post('com.atproto.repo.uploadBlob', bytes, alice, headers)
    const record = { repo: alice.did, collection: 'com.example.file', record: { file: json.blob } }
    assert.equal((await pds.post('com.atproto.repo.createRecord', record, alice)).status, 200)
    const blob = { did: alice.did, cid: json.blob.ref.$link }
    const cid = Cid.parse(blob.cid)
    assert.deepEqual((await pds.get('com.atproto.sync.getBlob', blob)).bytes, bytes)
    const part = await pds.get('com.atproto.sync.getBlob', blob, { range: 'bytes=100000-150000' })
    assert.deepEqual([part.status, part.bytes], [206, bytes.slice(100_000, 150_001)])
    const subject = { $type: 'com.atproto.admin.defs#repoBlobRef', ...blob }
    const takedown = { subject, takedown: { applied: true } }
    await pds.post('com.atproto.admin.updateSubjectStatus', takedown, null, basic())
    assert.equal((await pds.get('com.atproto.sync.getBlob', blob)).status, 400)
    assert.equal(await bucket.open(alice.did, cid), null)
  }
  assert.deepEqual(await bucket.stale(Date.now() + 60_000), [])
  await pds.departures.remove(alice.did)
})

test('an upload that cannot be kept is not acknowledged', async t => {
  const pds = await startTestPds(t, {
    PDS_BLOBSTORE_S3_BUCKET: 'blobs',
    PDS_BLOBSTORE_S3_REGION: 'us-east-1',
    PDS_BLOBSTORE_S3_ENDPOINT: 'http://127.0.0.1:1',
    PDS_BLOBSTORE_S3_ACCESS_KEY_ID: 'id',
    PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY: 'secret',
  })
  const alice = await pds.user('alice')
  const headers = { 'content-type': 'text/plain' }
  const { status, json } = await pds.post('com.atproto.repo.uploadBlob', new Uint8Array(5), alice, headers)
  assert.deepEqual([status, json.error], [502, 'UpstreamFailure'])
  assert.equal((await pds.store.blobs.usage(alice.account.id)).blobs, 0)
})
