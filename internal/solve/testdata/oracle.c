// The oracle of internal/solve's tests: libsolv, asked whether packages can be installed on
// an empty system. It reads lines:
//
//   P NAME EVR ARCH     a package; the first one is 0
//   p|r|c|o NAME [OP EVR]   what the last one provides, requires, conflicts with, obsoletes;
//                       separated by tabs, a NAME that starts with ( is a rich dependency
//   + N, - N            package N is (not) there
//   Q N                 answers 1 or 0
//   E                   answers "." when all before is done
//   Z                   forgets everything
//   I 0|1               whether an i686 package must have the version of its x86_64 twin
//
// The pool and the solver are set up as libdnf does it on x86_64, but for the last: no, where
// libdnf says yes, since the answer then depends on what else is within reach.
#include <solv/pool.h>
#include <solv/repo.h>
#include <solv/solver.h>
#include <solv/evr.h>
#include <solv/bitmap.h>
#include <solv/pool_parserpmrichdep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Id dep(Pool *pool, char *s) {
	char *op = strchr(s, '\t');
	if (!op) {
		Id id = *s == '(' ? pool_parserpmrichdep(pool, s) : 0;
		return id ? id : pool_str2id(pool, s, 1);
	}
	*op++ = 0;
	char *evr = strchr(op, '\t');
	*evr++ = 0;
	int flags = 0;
	for (; *op; op++)
		flags |= *op == '<' ? REL_LT : *op == '>' ? REL_GT : REL_EQ;
	return pool_rel2id(pool, pool_str2id(pool, s, 1), pool_str2id(pool, evr, 1), flags, 1);
}

static Pool *fresh(Map *there) {
	Pool *pool = pool_create();
	pool_setdisttype(pool, DISTTYPE_RPM);
	pool_setarch(pool, "x86_64");
	pool_set_flag(pool, POOL_FLAG_IMPLICITOBSOLETEUSESCOLORS, 1);
	map_empty(there);
	pool->considered = there;
	return pool;
}

int main(void) {
	Map there;
	map_init(&there, 1 << 20);
	Pool *pool = fresh(&there);
	Repo *repo = repo_create(pool, "all");
	Id first = 0, cur = 0;
	int dirty = 1, infarch = 0;
	char *line = 0;
	size_t size = 0;
	ssize_t n;
	while ((n = getline(&line, &size, stdin)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = 0;
		char *arg = line + 2;
		Solvable *s = cur ? pool_id2solvable(pool, cur) : 0;
		switch (*line) {
		case 'P': {
			cur = repo_add_solvable(repo);
			if (!first)
				first = cur;
			s = pool_id2solvable(pool, cur);
			char *evr = strchr(arg, ' ');
			*evr++ = 0;
			char *arch = strchr(evr, ' ');
			*arch++ = 0;
			s->name = pool_str2id(pool, arg, 1);
			s->evr = pool_str2id(pool, evr, 1);
			s->arch = pool_str2id(pool, arch, 1);
			dirty = 1;
			break;
		}
		case 'p': s->provides = repo_addid_dep(repo, s->provides, dep(pool, arg), 0); break;
		case 'r': s->requires = repo_addid_dep(repo, s->requires, dep(pool, arg), 0); break;
		case 'c': s->conflicts = repo_addid_dep(repo, s->conflicts, dep(pool, arg), 0); break;
		case 'o': s->obsoletes = repo_addid_dep(repo, s->obsoletes, dep(pool, arg), 0); break;
		case '+': MAPSET(&there, first + atoi(arg)); dirty = 1; break;
		case '-': MAPCLR(&there, first + atoi(arg)); dirty = 1; break;
		case 'Q': {
			if (dirty) {
				pool_createwhatprovides(pool);
				dirty = 0;
			}
			Queue job;
			queue_init(&job);
			queue_push2(&job, SOLVER_INSTALL | SOLVER_SOLVABLE | SOLVER_WEAK, first + atoi(arg));
			Solver *solv = solver_create(pool);
			solver_set_flag(solv, SOLVER_FLAG_ALLOW_VENDORCHANGE, 1);
			solver_set_flag(solv, SOLVER_FLAG_KEEP_EXPLICIT_OBSOLETES, 1);
			solver_set_flag(solv, SOLVER_FLAG_BEST_OBEY_POLICY, 1);
			solver_set_flag(solv, SOLVER_FLAG_YUM_OBSOLETES, 1);
			solver_set_flag(solv, SOLVER_FLAG_KEEP_ORPHANS, 1);
			solver_set_flag(solv, SOLVER_FLAG_NO_INFARCHCHECK, !infarch);
			// A weak job, since libsolv looks long for ways out of one that fails.
			solver_solve(solv, &job);
			puts(solver_get_decisionlevel(solv, first + atoi(arg)) > 0 ? "1" : "0");
			solver_free(solv);
			queue_free(&job);
			break;
		}
		case 'Z':
			pool->considered = 0;
			pool_free(pool);
			pool = fresh(&there);
			repo = repo_create(pool, "all");
			first = cur = 0;
			dirty = 1;
			break;
		case 'I': infarch = atoi(arg); break;
		case 'E': puts("."); fflush(stdout); break;
		default: fprintf(stderr, "what is %s\n", line); return 1;
		}
	}
	return 0;
}
