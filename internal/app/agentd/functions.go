package agentd

import (
	"context"
	"encoding/json"

	"drover/internal/agent/module"
	"drover/internal/agent/module/accounts"
	"drover/internal/agent/module/command"
	"drover/internal/agent/module/core"
	"drover/internal/agent/module/files"
	"drover/internal/agent/module/network"
	"drover/internal/agent/module/software"
	"drover/internal/agent/module/system"
	"drover/internal/fault"
	"drover/internal/fleet/wire"
)

// functions are drover's own.
func functions(late *later) [][]module.Function {
	jobs := core.Jobs{
		Running: func() []map[string]any {
			if late == nil || late.agent == nil {
				return []map[string]any{}
			}
			return late.agent.Running()
		},
		Kill: func(jid string, signal int) error {
			if late == nil || late.agent == nil {
				return fault.NotFound("job_unknown", "no command runs here")
			}
			return late.agent.Kill(jid, signal)
		},
	}
	return [][]module.Function{core.Functions(jobs), command.Functions(), files.Functions(), system.Functions(), software.Functions(), accounts.Functions(), network.Functions(), upgradeFunctions()}
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
