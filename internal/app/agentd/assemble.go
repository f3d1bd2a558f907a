package agentd

import (
	"context"

	"drover/internal/agent"
	"drover/internal/agent/module"
	"drover/internal/fault"
)

func assemble(*Env, Config, common, string) (*agent.Agent, error) {
	return nil, fault.Unavailable("agent_later", "not yet")
}

func hostOf(*Env, Config, *agent.Agent) module.Host {
	return module.Host{Registry: module.NewRegistry()}
}

func collect(*Env, Config) func(context.Context) (map[string]any, []error) {
	return func(context.Context) (map[string]any, []error) { return map[string]any{}, nil }
}
