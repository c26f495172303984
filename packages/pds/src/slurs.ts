/**
 * Slurs that may not stand in a handle or a record key, with the usual figures for letters.
 *
 * Both are ASCII, so letters of other alphabets that look alike need no care.
 * Source: the kinds of words that the reference refuses.
 */
const WORDS = [
  /\bch[i1l]nks?\b/,
  /\bc[o0]{2}ns?\b/,
  /\bf[a4@]gg?(?:[o0e3i1l]tt?(?:ry|r[i1l]e?)?)?s?\b/,
  /\bk[i1ly]k[e3](?:ry|r[i1l]e?)?s*\b/,
  /\bn[i1lo0a4][gq]{2}(?:l[e3]t|[e3a4]r?|n[o0][gq])?s?\b/,
  /n[i1lo0a4][gq]{2}(?:l[e3]t|[e3a4]r)/,
  /\btr[a4]+nn?(?:[i1l]e|y|[e3]r)s?\b/,
]

/** Whether one of them stands in the text as a word, or does once what divides words is left out. */
export function hasSlur(text: string): boolean {
  const lower = text.toLowerCase()
  const joined = lower.replace(/[._-]/g, '')
  return WORDS.some(word => word.test(lower) || word.test(joined))
}
