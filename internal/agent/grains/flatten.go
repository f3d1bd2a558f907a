package grains

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"drover/internal/agent/module"
)

// Bounds of flat facts.
const (
	maxFlat  = 5000
	maxKey   = 512
	maxValue = 4 << 10
)

// Flatten makes lines of facts: the names on the way to a value joined by ":", elements of lists by
// their number from 0, values as Python prints them, so that selectors written for Salt fit:
// "selinux:enabled" is "True", "ipv4:0" is "127.0.0.1". Empty lists and mappings have no lines. At
// most 5,000 lines come out, those of the first names; values are cut at 4 KiB, and names of over 512
// bytes are left out.
func Flatten(facts map[string]any) map[string]string {
	out := map[string]string{}
	flatten(out, "", facts)
	return out
}

func flatten(out map[string]string, key string, v any) {
	if len(out) >= maxFlat || len(key) > maxKey {
		return
	}
	below := func(name string) string {
		name = strings.ToValidUTF8(name, "\uFFFD")
		if key == "" {
			return name
		}
		return key + ":" + name
	}
	switch x := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(x)) {
			flatten(out, below(k), x[k])
		}
	case []any:
		for i, e := range x {
			if len(out) >= maxFlat {
				return
			}
			flatten(out, below(strconv.Itoa(i)), e)
		}
	case []string:
		flatten(out, key, texts(x))
	default:
		out[key] = cut(strings.ToValidUTF8(module.Text(v), "\uFFFD"))
	}
}

// cut shortens a text to maxValue bytes, between two characters.
func cut(s string) string {
	if len(s) <= maxValue {
		return s
	}
	end := maxValue
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}
