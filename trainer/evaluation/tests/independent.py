"""Metrics by scipy and scikit-learn on made-up cells with many zeros and ties, in the layout of the
golden case `scdca/metrics`. Arguments: folder to write to, seed."""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

out, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(seed)
K, CELLS, CONTROL, GENES = 5, 29, 47, 83
GAMMAS = [2, 1, 0.5, 0.1, 0.01, 0.005]

base = rng.gamma(1.0, 1.0, GENES)
effect = np.exp(rng.normal(0, 1.2, (K, GENES)) * (rng.random((K, GENES)) < 0.3))
guess = effect ** 0.6 * np.exp(rng.normal(0, 0.3, (K, GENES)))


def cells(rate, n):
    counts = rng.poisson(rate, (n, GENES)).astype(np.float64)
    return np.log1p(counts).astype(np.float32)


control = cells(base, CONTROL)
real = np.stack([cells(base * e, CELLS) for e in effect])
pred = np.stack([cells(base * g, CELLS) for g in guess])

C, R, P = (x.astype(np.float64) for x in (control, real, pred))
m0, mr, mp = C.mean(0), R.mean(1), P.mean(1)
dr, dp = mr - m0, mp - m0
de = np.argsort(-np.abs(dr), axis=1, kind="stable")[:, :20]
expected = {}


def put(name, values):
    expected[name] = np.atleast_1d(np.asarray(values, dtype=np.float64))


def each(f):
    return [f(k) for k in range(K)]


def top(delta, n):
    return set(np.argsort(-np.abs(delta), kind="stable")[:n])


put("r2_mean_all", each(lambda k: r2_score(mr[k], mp[k])))
put("r2_mean_de", each(lambda k: r2_score(mr[k][de[k]], mp[k][de[k]])))
put("r2_delta_all", each(lambda k: r2_score(dr[k], dp[k])))
put("r2_var_all", each(lambda k: r2_score(R[k].var(0, ddof=1), P[k].var(0, ddof=1))))
put("pearson_all", each(lambda k: stats.pearsonr(mr[k], mp[k])[0]))
put("squared_pearson_all", expected["pearson_all"] ** 2)
put("pearson_delta_all", each(lambda k: stats.pearsonr(dr[k], dp[k])[0]))
put("pearson_delta_de", each(lambda k: stats.pearsonr(dr[k][de[k]], dp[k][de[k]])[0]))
center = mr.mean(0)
put("pearson_delta_vs_pertmean", each(lambda k: stats.pearsonr(mr[k] - center, mp[k] - center)[0]))
put("spearman_delta_all", each(lambda k: stats.spearmanr(dr[k], dp[k])[0]))
put("cosine_delta_all", each(lambda k: 1 - cdist([dr[k]], [dp[k]], "cosine")[0, 0]))
put("mse_all", ((mr - mp) ** 2).mean(1))
put("mse_de", each(lambda k: ((mr[k] - mp[k])[de[k]] ** 2).mean()))
put("mae_all", np.abs(mr - mp).mean(1))
put("l2_all", np.linalg.norm(mr - mp, axis=1))
put("sign_agreement_de", each(lambda k: (np.sign(dr[k]) == np.sign(dp[k]))[de[k]].mean()))
ratio = lambda m: np.log2((m + 1e-5) / (m0 + 1e-5))
put("logfold_r2_de_chemcpa", each(lambda k: r2_score(ratio(mr[k])[de[k]], ratio(mp[k])[de[k]])))
for n in (5, 10, 20):
    put(f"top{n}_de_recall_absdelta", each(lambda k: len(top(dr[k], n) & top(dp[k], n)) / n))
with np.errstate(invalid="ignore"):
    t = np.stack(each(lambda k: stats.ttest_ind(R[k], C, equal_var=False).statistic))
size = np.abs(np.nan_to_num(t))
weights = ((size - size.min(1, keepdims=True)) / np.ptp(size, axis=1)[:, None]) ** 2
weights /= weights.sum(1, keepdims=True)
put("wmse_weights", weights)
put("wmse", (weights * (mr - mp) ** 2).sum(1))

for name, metric in (("l1", "cityblock"), ("l2", "euclidean"), ("cosine", "cosine")):
    distances = cdist(dp, dr, metric)
    rank = np.array([list(np.argsort(distances[k], kind="stable")).index(k) for k in range(K)])
    put(f"discrimination_rank0_{name}", rank)
    put(f"discrimination_score_{name}", 1 - rank / K)


def energy(x, y):
    return 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()


square = lambda x, y: cdist(x, y, "sqeuclidean")
inner = lambda x: square(x, x).sum() / (len(x) * (len(x) - 1))
put("edistance_euclid_pred_real", each(lambda k: energy(P[k], R[k])))
put("edistance_euclid_pred_ctrl", each(lambda k: energy(P[k], C)))
put("edistance_euclid_real_ctrl", each(lambda k: energy(R[k], C)))
put("pearson_edistance", stats.pearsonr(expected["edistance_euclid_real_ctrl"],
                                        expected["edistance_euclid_pred_ctrl"])[0])
put("edistance_sqeuclid_pred_real", each(
    lambda k: 2 * square(P[k], R[k]).mean() - square(P[k], P[k]).mean() - square(R[k], R[k]).mean()))
put("edistance_sqeuclid_unbiased_pred_real", each(
    lambda k: 2 * square(P[k], R[k]).mean() - inner(P[k]) - inner(R[k])))
mmd = lambda x, y, g: (rbf_kernel(x, x, g).mean() + rbf_kernel(y, y, g).mean()
                       - 2 * rbf_kernel(x, y, g).mean())
put("mmd_rbf_multigamma", each(lambda k: np.mean([mmd(P[k], R[k], g) for g in GAMMAS])))
put("wasserstein1_per_gene_mean", each(lambda k: np.mean(
    [stats.wasserstein_distance(P[k][:, g], R[k][:, g]) for g in range(GENES)])))

EPS = 1e-9
tables = {}
for side, data, means in (("real", R, mr), ("pred", P, mp)):
    p = np.stack(each(lambda k: stats.mannwhitneyu(
        data[k], C, alternative="two-sided", method="asymptotic", use_continuity=True).pvalue))
    p = np.nan_to_num(p, nan=1.0)
    fdr = stats.false_discovery_control(p, axis=1)
    log2fc = np.log2((np.expm1(means) + EPS) / (np.expm1(m0) + EPS))
    tables[side] = fdr, log2fc
    put(f"de_pvalue_{side}", p)
    put(f"de_fdr_{side}", fdr)
    put(f"de_log2fc_{side}", log2fc)
    put(f"de_log2fc_arith_{side}", np.log2((np.expm1(data).mean(1) + EPS) / (np.expm1(C).mean(0) + EPS)))
    put(f"de_nsig_{side}", (fdr < 0.05).sum(1))
(fr, lr), (fp, lp) = tables["real"], tables["pred"]
assert ((fr < 0.05).sum(1) > 1).all() and ((fp < 0.05).sum(1) > 0).all(), "choose another seed"


def significant(fdr, log2fc):
    order = np.argsort(-np.abs(log2fc), kind="stable")
    return [g for g in order if fdr[g] < 0.05]


def shared(k, limit, of):
    a, b = significant(fr[k], lr[k]), significant(fp[k], lp[k])
    n = len(a if of == "real" else b)
    n = n if limit is None else min(limit, n)
    return len(set(a[:n]) & set(b[:n])) / n


for name, limit in (("N", None), ("5", 5), ("10", 10)):
    put(f"overlap_at_{name}", each(lambda k: shared(k, limit, "real")))
    put(f"precision_at_{name}", each(lambda k: shared(k, limit, "pred")))
sig = fr < 0.05
put("de_sig_genes_recall", each(lambda k: (fp[k] < 0.05)[sig[k]].mean()))
put("de_direction_match", each(lambda k: (np.sign(lr[k]) == np.sign(lp[k]))[sig[k]].mean()))
put("de_spearman_lfc_sig", each(lambda k: stats.spearmanr(lr[k][sig[k]], lp[k][sig[k]])[0]))
put("de_spearman_sig", stats.spearmanr(sig.sum(1), (fp < 0.05).sum(1))[0])
score = -np.log10(np.clip(fp, 1e-10, 1))
put("roc_auc", each(lambda k: roc_auc_score(sig[k], score[k])))
put("pr_auc", each(lambda k: average_precision_score(sig[k], score[k])))

user = [expected[n].mean() for n in ("overlap_at_N", "discrimination_score_l1", "mae_all")]
baseline = [0.1, 0.5, np.abs(mr - mr.mean(0)).mean()]
put("vcc_inputs_user", user)
put("vcc_inputs_base", baseline)
scaled = [max(0, (user[0] - baseline[0]) / (1 - baseline[0])),
          max(0, (user[1] - baseline[1]) / (1 - baseline[1])), max(0, 1 - user[2] / baseline[2])]
put("vcc_scaled", scaled)
put("vcc_overall", np.mean(scaled))

case = out / "metrics"
case.mkdir(parents=True)
save_file({"control": control, "real": real, "pred": pred, "de_index": de.astype(np.int64)},
          case / "inputs.safetensors")
save_file({k: np.ascontiguousarray(v) for k, v in expected.items()}, case / "expected.safetensors")
