package job

import (
	"encoding/json"
	"strings"

	"drover/internal/cli"
)

// Line is a job as the command line that starts it.
func (sp Spec) Line() string {
	out := []string{"drover run"}
	if flag := map[string]string{"pcre": "-E", "list": "-L", "grain": "-G", "grain_pcre": "-P", "compound": "-C", "nodegroup": "-N", "ipcidr": "-S", "query": "-Q"}[sp.Form]; flag != "" {
		out = append(out, flag)
	}
	if sp.Batch != "" {
		out = append(out, "-b "+sp.Batch)
	}
	target := sp.Target
	if len(target) > 200 {
		target = target[:200] + "…"
	}
	out = append(out, cli.Quote(target), sp.Fun)
	text := func(v any) string {
		if s, ok := v.(string); ok {
			return s
		}
		b, err := json.Marshal(v)
		if err != nil {
			return "?"
		}
		return string(b)
	}
	for _, a := range sp.Args {
		out = append(out, cli.Quote(text(a)))
	}
	for k, v := range sp.Kwargs {
		out = append(out, k+"="+cli.Quote(text(v)))
	}
	return strings.Join(out, " ")
}
