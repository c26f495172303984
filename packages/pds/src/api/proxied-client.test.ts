import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AtpAgent } from '@atproto/api'
import { json, startPdsWithAppView, startStandIn } from '../testing-services.ts'

test("the ecosystem's client sees its own post at once, and reaches the services it names", async t => {
  const { pds, appView } = await startPdsWithAppView(t, { PDS_INVITE_REQUIRED: 'false' })
  const labeler = await startStandIn(t, { atproto_labeler: 'AtprotoLabeler' })
  const alice = await pds.user('alice')
  const agent = new AtpAgent({ service: pds.url })
  const session = { did: alice.did, handle: 'alice.test', accessJwt: alice.token, refreshJwt: 'none', active: true }
  agent.sessionManager.session = session
  const before = (await pds.store.repos.state(alice.did))!.head.rev
  appView.answer = ({ path }, response) => {
    const headers = { 'atproto-repo-rev': before, 'atproto-content-labelers': 'did:plc:l;redact' }
    if (path.includes('getPostThread'))
      return json(response, { error: 'NotFound', message: 'Post not found' }, headers, 400)
    json(response, { feed: [] }, headers)
  }
  const post = await agent.post({ text: 'hello', createdAt: new Date().toISOString() })
  const { data, headers } = await agent.getTimeline()
  assert.deepEqual([data.feed[0]!.post.uri, data.feed[0]!.post.author.handle], [post.uri, 'alice.test'])
  assert.equal(headers['atproto-content-labelers'], 'did:plc:l;redact')
  assert.ok(Number(headers['atproto-upstream-lag']) >= 0)
  const thread = await agent.getPostThread({ uri: post.uri })
  assert.equal(thread.data.thread.$type, 'app.bsky.feed.defs#threadViewPost')

  labeler.answer = (_asked, response) => {
    const reasonType = 'com.atproto.moderation.defs#reasonSpam'
    const subject = { $type: 'com.atproto.admin.defs#repoRef', did: alice.did }
    json(response, { id: 1, reasonType, subject, reportedBy: alice.did, createdAt: new Date().toISOString() })
  }
  const proxied = agent.withProxy('atproto_labeler', labeler.did)
  const report = await proxied.com.atproto.moderation.createReport({
    reasonType: 'com.atproto.moderation.defs#reasonSpam',
    subject: { $type: 'com.atproto.admin.defs#repoRef', did: alice.did },
  })
  assert.equal(report.data.id, 1)
  assert.equal(labeler.asked[0]!.token!.payload.aud, labeler.did)
  const created = await proxied.com.atproto.repo.listRecords({ repo: alice.did, collection: 'app.bsky.feed.post' })
  assert.equal(created.data.records.length, 1, 'what this server has itself it serves itself, whoever is named')
})
