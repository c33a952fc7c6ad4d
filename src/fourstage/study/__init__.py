"""Studies: experiments around a finished run that answer one question, kept in a folder of theirs.

    RUN/study/study.json       what was asked and found
    RUN/study/study.html       the page
    RUN/study/samples/         responses of the SFT model, drawn once
    RUN/study/scores/          what each scorer said of them
    RUN/study/rl/kl-0.02/      a run of its own: RL at another KL coefficient
    RUN/study/reward/comparisons-500/      a run of its own: a reward model of fewer comparisons

Whatever was finished is kept; the same command goes on where it stopped.
"""
