package job

import (
	"encoding/json"
	"strings"

	"drover/internal/cli"
)

// Line is a job as the command line that starts it.
func (s Spec) Line() string {
	out := []string{"drover run"}
	if flag := map[string]string{"pcre": "-E", "list": "-L", "grain": "-G", "grain_pcre": "-P", "compound": "-C", "nodegroup": "-N", "ipcidr": "-S", "query": "-Q"}[s.Form]; flag != "" {
		out = append(out, flag)
	}
	if s.Batch != "" {
		out = append(out, "-b "+s.Batch)
	}
	target := s.Target
	if len(target) > 200 {
		target = target[:200] + "…"
	}
	out = append(out, cli.Quote(target), s.Fun)
	text := func(v any) string {
		if t, ok := v.(string); ok {
			return t
		}
		b, err := json.Marshal(v)
		if err != nil {
			return "?"
		}
		return string(b)
	}
	for _, a := range s.Args {
		out = append(out, cli.Quote(text(a)))
	}
	for k, v := range s.Kwargs {
		out = append(out, k+"="+cli.Quote(text(v)))
	}
	return strings.Join(out, " ")
}
