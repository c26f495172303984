/** Sending mail by SMTP. Source: pds.md §3 #8: a mail that fails is said to fail, to the caller and in the log. */
import { Unavailable } from '@millisky/core/errors'
import type { Logger } from '@millisky/server/trace'
import type { createTransport } from 'nodemailer'

const CONNECT_MS = 10_000
const SILENCE_MS = 20_000

export interface Mail {
  to: string
  subject: string
  text: string
  html: string
}

export interface MailerParts {
  /** `smtp://user:password@host:port` or `smtps://…`; without one nothing is sent. */
  smtpUrl: string | undefined
  /** Address that mails come from. */
  from: string | undefined
  /** Write mails that cannot be sent into the log instead, with the secrets in them: for development alone. */
  show: boolean
  log: Logger
}

type Transport = ReturnType<typeof createTransport>

/** Sends mail. */
export class Mailer {
  readonly #parts: MailerParts
  /** Loaded with the first mail: most of the time it would only take memory. */
  #transport: Promise<Transport> | null = null
  readonly #background = new Set<Promise<void>>()

  /** @throws Error if one of the two settings is given without the other */
  constructor(parts: MailerParts) {
    const { smtpUrl: url, from } = parts
    if ((url === undefined) !== (from === undefined)) {
      throw new Error('For mail both an SMTP URL and an address to send from are needed')
    }
    this.#parts = parts
  }

  /**
   * Resolves when the mail server has taken the mail; without a mail server, at once.
   * @throws Unavailable 502 when it has not
   */
  async send(mail: Mail): Promise<void> {
    const { from, show, log, smtpUrl } = this.#parts
    const { to, subject, text } = mail
    if (smtpUrl === undefined) {
      if (show) log.info({ to, subject, text }, 'no mail server is set; this would have been sent')
      else log.warn({ subject }, 'no mail server is set; a mail was not sent')
      return
    }
    try {
      this.#transport ??= openTransport(smtpUrl)
      const transport = await this.#transport
      await transport.sendMail({ ...mail, from })
    } catch (error) {
      log.error({ err: error, subject }, 'a mail could not be sent')
      throw new Unavailable('UpstreamFailure', 'The mail could not be sent', 502)
    }
  }

  /** Prepares and sends a mail while the caller goes on, who is not to learn whether there was one to send. */
  sendUnseen(prepare: () => Promise<Mail | null>): void {
    const work = (async () => {
      const mail = await prepare()
      if (mail) await this.send(mail)
    })()
    const done = work
      .catch(error => {
        if (!(error instanceof Unavailable)) this.#parts.log.error({ err: error }, 'a mail could not be prepared')
      })
      .finally(() => this.#background.delete(done))
    this.#background.add(done)
  }

  /** After mails under way are sent. */
  async close(): Promise<void> {
    await Promise.all(this.#background)
    const transport = await this.#transport
    transport?.close()
  }
}

async function openTransport(url: string): Promise<Transport> {
  const { createTransport } = await import('nodemailer')
  const timeouts = { connectionTimeout: CONNECT_MS, greetingTimeout: CONNECT_MS, socketTimeout: SILENCE_MS }
  return createTransport({ url, ...timeouts })
}
