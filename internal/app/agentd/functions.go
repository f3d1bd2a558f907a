package agentd

import (
	"context"
	"encoding/json"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fleet/wire"
)

// functions are drover's own.
func functions(*later) [][]module.Function {
	return [][]module.Function{command.Functions(), upgradeFunctions()}
}

// mine calls what this host shares with others.
func mine(ctx context.Context, cfg Config, h module.Host, say func(string, error)) map[string]string {
	out := map[string]string{}
	for name, args := range cfg.Mine {
		v, err := h.Call(ctx, name, args, nil)
		say(wire.KindMine+" "+name, err)
		if err != nil {
			continue
		}
		if b, err := json.Marshal(v); err == nil {
			out[name] = string(b)
		}
	}
	return out
}
