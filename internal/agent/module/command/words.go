package command

import (
	"strings"

	"drover/internal/fault"
)

// Words splits a line into words as a POSIX shell does, without expanding anything: quotes hold
// words together, a backslash takes the next character as it is.
func Words(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false // a word has begun, be it empty
	const bare, single, double = 0, '\'', '"'
	quote := rune(bare)
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		switch {
		case quote == single:
			if c == single {
				quote = bare
			} else {
				word.WriteRune(c)
			}
		case c == '\\':
			if i+1 == len(runes) {
				return nil, fault.Invalid("words_bad", "the line ends with a backslash: %q", short(line))
			}
			i++
			if quote == double && runes[i] != '"' && runes[i] != '\\' {
				word.WriteRune('\\')
			}
			word.WriteRune(runes[i])
			in = true
		case quote == double:
			if c == double {
				quote = bare
			} else {
				word.WriteRune(c)
			}
		case c == single || c == double:
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != bare {
		return nil, fault.Invalid("words_bad", "a quote is not closed: %q", short(line))
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// Quote writes a word so that a POSIX shell takes it as it is.
func Quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}
