import assert from 'node:assert/strict'
import { test } from 'node:test'
import { checkEmail } from './emails.ts'

const isAddress = (text: string) => {
  try {
    checkEmail(text)
    return true
  } catch {
    return false
  }
}

test('addresses as people have them, with domains of any script', () => {
  for (const text of [
    'a@b.co',
    'a@b.c',
    'a.b+c@sub.example.co.uk',
    "o'neil@c.com",
    'ü@c.com',
    'a@ü.com',
    '日本@例え.jp',
    'a@c.xn--p1ai',
  ])
    assert.ok(isAddress(text), text)
  assert.equal(checkEmail(' Ann@Example.COM '), 'ann@example.com')
})

test('what is no address, or hands them out for minutes', () => {
  const broken = [
    '',
    '@',
    'a@',
    '@c.com',
    'a@b',
    'a@localhost',
    'a b@c.com',
    'a@b@c.com',
    'a..b@c.com',
    '.a@c.com',
    'a.@c.com',
    'a@c..com',
  ]
  const odd = [
    'a@-c.com',
    'a@c-.com',
    'a@c_d.com',
    'a@1.2.3.4',
    'a@[127.0.0.1]',
    '"a b"@c.com',
    'a,b@c.com',
    'a@c.com,b@c.com',
    'a<b@c.com',
  ]
  const long = [`${'a'.repeat(65)}@c.com`, `a@${'b'.repeat(64)}.com`, `a@${'b.'.repeat(125)}com`]
  for (const text of [...broken, ...odd, ...long, 'a@mailinator.com', 'a@MAILINATOR.com'])
    assert.ok(!isAddress(text), text)
})
