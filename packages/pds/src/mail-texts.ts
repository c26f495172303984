/** What mails say. Subjects are the reference's, since people filter by them and clients tell what to look for. */
import type { Mail } from './mail.ts'

type Text = Omit<Mail, 'to'>

/** A mail that brings a code and says what it is for. */
function withCode(subject: string, title: string, paragraphs: string[], token: string, link?: string): Text {
  const closing = 'If you did not ask for this, you need not do anything, and nobody should be told the code.'
  const html = [
    `<h1>${escapeHtml(title)}</h1>`,
    ...paragraphs.map(text => `<p>${escapeHtml(text)}</p>`),
    `<p><code style="font-size:1.5em">${escapeHtml(token)}</code></p>`,
    ...(link ? [`<p>Or open <a href="${escapeHtml(link)}">${escapeHtml(link)}</a></p>`] : []),
    `<p>${escapeHtml(closing)}</p>`,
  ]
  const text = [title, ...paragraphs, token, ...(link ? [`Or open ${link}`] : []), closing]
  return {
    subject,
    text: `${text.join('\n\n')}\n`,
    html: `<!doctype html><html lang="en"><body style="font-family:sans-serif">${html.join('')}</body></html>`,
  }
}

export function passwordResetMail({ name, token }: { name: string; token: string }): Text {
  return withCode(
    'Password Reset Requested',
    'Reset your password',
    [
      `We received a request to reset the password for the account ${name}.`,
      'To set a new password, enter this code in the app within 15 minutes:',
    ],
    token,
  )
}

export function accountDeleteMail({ token }: { token: string }): Text {
  return withCode(
    'Account Deletion Requested',
    'Delete your account',
    ['To permanently delete your account, enter this code in the app along with your password within 15 minutes:'],
    token,
  )
}

/** @param link - Whether to point to the page of the Bluesky app that confirms. */
export function confirmEmailMail({ token, link }: { token: string; link: boolean }): Text {
  return withCode(
    'Email Confirmation',
    'Confirm your email',
    ['To confirm this email for your account, enter this code in the app within 15 minutes:'],
    token,
    link ? `https://bsky.app/intent/verify-email?code=${encodeURIComponent(token)}` : undefined,
  )
}

export function updateEmailMail({ token }: { token: string }): Text {
  return withCode(
    'Email Update Requested',
    'Update your email',
    ['To update the email for your account, enter this code in the app along with your new email within 15 minutes:'],
    token,
  )
}

export function plcOperationMail({ token }: { token: string }): Text {
  return withCode(
    'PLC Update Operation Requested',
    'PLC update requested',
    [
      'We received a request to update your PLC identity, which decides which server and which keys your account has.',
      'Enter this code within 15 minutes to have the change signed:',
    ],
    token,
  )
}

/** A mail written by a moderator in HTML. */
export function writtenMail({ subject, content }: { subject: string; content: string }): Text {
  const text = content
    .replace(/<(br|\/p|\/div|\/h\d|\/li)\b[^>]*>/gi, '\n')
    .replace(/<[^>]*>/g, '')
    .replace(/&(lt|gt|quot|amp);/g, (_, name: 'lt' | 'gt' | 'quot' | 'amp') => ENTITIES[name])
    .trim()
  return { subject, html: content, text: `${text}\n` }
}

const ENTITIES = { lt: '<', gt: '>', quot: '"', amp: '&' }

function escapeHtml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}
