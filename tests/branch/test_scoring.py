"""Several students' questions as one: each gets its own answer back."""

import numpy as np

from copd.branch.scoring import join_requests, split_outputs
from copd.types import ProblemId, ScoreRequest, TeacherOutputs


def request(index: int, lengths: list[int], probes: list[int]) -> ScoreRequest:
    num_tokens = sum(lengths)
    return ScoreRequest(
        problems=(ProblemId("text", "train", index),),
        token_ids=np.arange(10 * index, 10 * index + num_tokens, dtype=np.int32),
        lengths=np.array(lengths, dtype=np.int32),
        probes=np.array(probes, dtype=np.int32),
        top_k=2,
    )


REQUESTS = [request(0, [3, 1], [0, 3]), request(1, [2, 3], []), request(2, [1, 1], [1])]


def test_questions_stand_end_to_end():
    joined = join_requests(REQUESTS)
    assert [problem.index for problem in joined.problems] == [0, 1, 2]
    assert joined.token_ids.tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14, 20, 21]
    assert joined.lengths.tolist() == [3, 1, 2, 3, 1, 1]
    assert joined.probes.tolist() == [0, 3, 10]
    assert joined.probes.dtype == np.int32


def test_everyone_gets_the_answer_to_his_question():
    joined = join_requests(REQUESTS)
    teacher_outputs = TeacherOutputs(
        logprobs=-joined.token_ids.astype(np.float32),
        probes=joined.probes,
        topk_ids=np.repeat(joined.token_ids[joined.probes], 2).reshape(3, 2),
        topk_logprobs=np.zeros((3, 2), dtype=np.float32),
    )
    for asked, given in zip(REQUESTS, split_outputs(teacher_outputs, REQUESTS), strict=True):
        assert given.logprobs.tolist() == (-asked.token_ids).tolist()
        assert given.probes.tolist() == asked.probes.tolist()
        assert given.topk_ids[:, 0].tolist() == asked.token_ids[asked.probes].tolist()
        assert given.topk_logprobs.shape == (len(asked.probes), 2)
