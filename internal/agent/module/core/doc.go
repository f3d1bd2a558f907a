// Package core is what the agent can say and do of itself: the functions of test, sys, grains,
// config, match, slsutil, defaults, mine, event, environ, log, random and saltutil, and the clear
// refusals of those that come with states and pillar.
//
// It sees the host only through module.Host and the table of jobs that it is given. Anything that
// changes the host itself, but for the agent's own static grains, must never come in.
package core
