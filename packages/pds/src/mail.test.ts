import assert from 'node:assert/strict'
import { test } from 'node:test'
import { silentLog } from '@millisky/server/trace'
import { Mailer } from './mail.ts'
import { passwordResetMail, writtenMail } from './mail-texts.ts'
import { startMailbox } from './testing-mail.ts'

const mail = { to: 'alice@example.com', subject: 'Hello', text: 'plain words\n', html: '<p>rich words</p>' }

test('a mail arrives as text and as HTML', async t => {
  const mailbox = await startMailbox(t)
  const mailer = new Mailer({ smtpUrl: mailbox.url, from: 'PDS <pds@pds.test>', show: false, log: silentLog })
  await mailer.send(mail)
  const got = await mailbox.next()
  assert.deepEqual([got.from, got.to, got.subject], ['pds@pds.test', ['alice@example.com'], 'Hello'])
  assert.match(got.source, /^From: PDS <pds@pds\.test>\r$/m)
  assert.match(
    got.source,
    /Content-Type: text\/plain[\s\S]*plain words[\s\S]*Content-Type: text\/html[\s\S]*<p>rich words<\/p>/,
  )
  await mailer.close()
})

test('what is in a subject or a name stays there', async t => {
  const mailbox = await startMailbox(t)
  const mailer = new Mailer({ smtpUrl: mailbox.url, from: 'pds@pds.test', show: false, log: silentLog })
  await mailer.send({ ...mail, subject: 'Hi\r\nBcc: mallory@example.com' })
  const { to, source } = await mailbox.next()
  assert.deepEqual(to, ['alice@example.com'])
  assert.doesNotMatch(source, /^Bcc:/m)
  const { html, text } = passwordResetMail({ name: '<img src=x>', token: 'AAAAA-BBBBB' })
  assert.doesNotMatch(html, /<img/)
  assert.match(text, /<img src=x>/)
  await mailer.close()
})

test('a mail that is refused, or a server that is gone, is said', async t => {
  const mailbox = await startMailbox(t)
  const mailer = new Mailer({ smtpUrl: mailbox.url, from: 'pds@pds.test', show: false, log: silentLog })
  const failed = { name: 'Unavailable', error: 'UpstreamFailure', status: 502, message: 'The mail could not be sent' }
  mailbox.refusing = true
  await assert.rejects(mailer.send(mail), failed)
  mailbox.refusing = false
  await mailer.send(mail)
  assert.equal(mailbox.mails.length, 1)
  const nowhere = new Mailer({ smtpUrl: 'smtp://127.0.0.1:1', from: 'pds@pds.test', show: false, log: silentLog })
  await assert.rejects(nowhere.send(mail), failed)
  nowhere.sendUnseen(async () => mail)
  nowhere.sendUnseen(async () => {
    throw new Error('a bug')
  })
  await nowhere.close()
  await mailer.close()
})

test('closing waits for mails under way', async t => {
  const mailbox = await startMailbox(t)
  const mailer = new Mailer({ smtpUrl: mailbox.url, from: 'pds@pds.test', show: false, log: silentLog })
  for (let i = 0; i < 5; i++) mailer.sendUnseen(async () => (i === 2 ? null : mail))
  await mailer.close()
  assert.equal(mailbox.mails.length, 4)
})

test('without a mail server nothing is sent and nothing fails; half a setting is a mistake', async () => {
  await new Mailer({ smtpUrl: undefined, from: undefined, show: false, log: silentLog }).send(mail)
  assert.throws(() => new Mailer({ smtpUrl: 'smtp://x', from: undefined, show: false, log: silentLog }), /both/)
  assert.throws(() => new Mailer({ smtpUrl: undefined, from: 'x@y.z', show: false, log: silentLog }), /both/)
})

test('what a moderator wrote in HTML can be read as text', () => {
  const { text } = writtenMail({ subject: 's', content: '<p>Dear &lt;you&gt;</p><p>a &amp;lt; b<br>c</p>' })
  assert.equal(text, 'Dear <you>\na &lt; b\nc\n')
})
