"""A reward that an untrained model sometimes earns: the response begins with a digit."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"score": float(solution_str[:1].isdigit()), "acc": float(solution_str == ground_truth)}
