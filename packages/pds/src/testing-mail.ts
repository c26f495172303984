/** A mailbox for tests: a real SMTP server on loopback that keeps what it is given. */
import { SMTPServer } from 'smtp-server'

export interface Received {
  from: string
  to: string[]
  subject: string
  /** The whole message as it came. */
  source: string
}

export interface Mailbox {
  url: string
  mails: Received[]
  /** Settings of a PDS that sends here. */
  env: Record<string, string>
  /** Waits for the next mail that is not taken yet and takes it. */
  next(): Promise<Received & { code: string }>
  /** While set, the server refuses every mail. */
  refusing: boolean
}

interface Cleanup {
  after(fn: () => Promise<void>): void
}

export async function startMailbox(t: Cleanup): Promise<Mailbox> {
  let taken = 0
  let arrived = Promise.withResolvers<void>()
  const server = new SMTPServer({
    disabledCommands: ['STARTTLS'],
    authOptional: true,
    logger: false,
    onData(stream, session, done) {
      const chunks: Buffer[] = []
      stream.on('data', chunk => chunks.push(chunk))
      stream.on('end', () => {
        if (mailbox.refusing) return done(Object.assign(new Error('no'), { responseCode: 550 }))
        const source = Buffer.concat(chunks).toString('utf8')
        const { mailFrom, rcptTo } = session.envelope
        mailbox.mails.push({
          from: mailFrom ? mailFrom.address : '',
          to: rcptTo.map(({ address }) => address),
          subject: /^Subject: (.*)\r$/m.exec(source)?.[1] ?? '',
          source,
        })
        arrived.resolve()
        arrived = Promise.withResolvers()
        done()
      })
    },
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.after(() => new Promise(resolve => server.close(() => resolve())))
  const { port } = server.server.address() as { port: number }
  const url = `smtp://127.0.0.1:${port}`
  const mailbox: Mailbox = {
    url,
    mails: [],
    env: { PDS_EMAIL_SMTP_URL: url, PDS_EMAIL_FROM_ADDRESS: 'Test PDS <noreply@pds.test>' },
    refusing: false,
    async next() {
      while (mailbox.mails.length <= taken) await arrived.promise
      const mail = mailbox.mails[taken++]!
      return { ...mail, code: /\b[A-Z2-7]{5}-[A-Z2-7]{5}\b/.exec(mail.source)?.[0] ?? '' }
    },
  }
  return mailbox
}
